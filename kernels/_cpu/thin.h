// Passes with at most four output channels (an image on the way out): vectors run along the input channels instead.
#pragma once
#include "tensors.h"

namespace kiln {
namespace KILN_NAMESPACE {

constexpr int THIN = 4;  // most output channels

typedef float v4 __attribute__((vector_size(16)));

static inline float sum_lanes(vf v) {
    v4 part[VL / 4];
    std::memcpy(part, &v, sizeof v);
    for (int i = 1; i < VL / 4; ++i) part[0] += part[i];
    return (part[0][0] + part[0][1]) + (part[0][2] + part[0][3]);
}

// A tap that a run of pixels reads: where it lies from the pixel, and its weights [n][channel].
struct ThinTap {
    int64_t offset;
    const float* weights;
};

// out[pixel][n] (+)= sum over taps and channels of in[pixel + tap][c] * weights[tap][n][c], for PIXELS neighbours.
template <int N, int PIXELS>
static void thin_tile(const float* in, int64_t pixel_step, const ThinTap* tap, int taps, int channels, float* out,
                      int64_t out_step, bool accumulate) {
    vf sum[PIXELS][N];
    for (int p = 0; p < PIXELS; ++p)
        for (int n = 0; n < N; ++n) sum[p][n] = splat(0.0f);
    for (int t = 0; t < taps; ++t) {
        const float *x = in + tap[t].offset, *weights = tap[t].weights;
        for (int c = 0; c < channels; c += VL, x += VL) {
            vf w[N];
            for (int n = 0; n < N; ++n) w[n] = load(weights + n * channels + c);
            for (int p = 0; p < PIXELS; ++p) {
                const vf value = load(x + p * pixel_step);
                for (int n = 0; n < N; ++n) sum[p][n] += value * w[n];
            }
        }
    }
    for (int p = 0; p < PIXELS; ++p)
        for (int n = 0; n < N; ++n) {
            float* to = out + p * out_step + n;
            *to = (accumulate ? *to : 0.0f) + sum_lanes(sum[p][n]);
        }
}

template <int N>
static void thin_row(const float* in, int64_t pixel_step, const ThinTap* tap, int taps, int channels, float* out,
                     int64_t out_step, int pixels, bool accumulate) {
    int p = 0;
    for (; p + 4 <= pixels; p += 4)
        thin_tile<N, 4>(in + p * pixel_step, pixel_step, tap, taps, channels, out + p * out_step, out_step, accumulate);
    for (; p < pixels; ++p)
        thin_tile<N, 1>(in + p * pixel_step, pixel_step, tap, taps, channels, out + p * out_step, out_step, accumulate);
}

using ThinRow = void (*)(const float*, int64_t, const ThinTap*, int, int, float*, int64_t, int, bool);
static inline ThinRow thin_row_of(int n) {
    static constexpr ThinRow rows[THIN + 1] = {nullptr, thin_row<1>, thin_row<2>, thin_row<3>, thin_row<4>};
    return rows[n];
}

}  // namespace KILN_NAMESPACE
}  // namespace kiln
