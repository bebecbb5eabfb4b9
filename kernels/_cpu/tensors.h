// How convolutions read and write NHWC tensors: bands copied to padded float32, results stored with their epilogue.
#pragma once
#include "vector.h"

namespace kiln {
namespace KILN_NAMESPACE {

// A dense NHWC tensor to read; a second one is its further channels. With `output`, elements are multiplied by the
// activation's derivative there: a gradient with respect to the output becomes one with respect to the sum before it.
struct Source {
    Dtype dtype;
    int height, width, channels;
    const void* data;
    int channels2 = 0;
    const void* data2 = nullptr;
    const void* output = nullptr;
    Activation activation = NONE;
    float slope = 0;

    int padded_channels() const { return round_up(channels + channels2, VL); }
};

// Rows from `row0`, columns from `column0` of one image, as float32 with `channels` (a multiple of VL) per pixel.
struct Band {
    float* data;
    int row0, column0, columns, channels;
    float* at(int row, int column) const {
        return data + (int64_t(row - row0) * columns + (column - column0)) * channels;
    }
};

static inline void fill_channels(float* to, const void* from, int64_t index, int n, Dtype dtype, float scale) {
    int c = 0;
    for (; c + VL <= n; c += VL) store(to + c, load_as(dtype, from, index + c) * scale);
    if (c < n) store(to + c, load_part(dtype, from, index + c, n - c) * scale);
}

static inline void fill_gradient(float* to, const Source& s, int64_t index, float scale) {
    int c = 0;
    for (; c + VL <= s.channels; c += VL)
        store(to + c, load_as(s.dtype, s.data, index + c) * scale *
                          derivative(s.activation, load_as(s.dtype, s.output, index + c), s.slope));
    if (c < s.channels) {
        const int n = s.channels - c;
        store(to + c, load_part(s.dtype, s.data, index + c, n) * scale *
                          derivative(s.activation, load_part(s.dtype, s.output, index + c, n), s.slope));
    }
}

// Copies rows [row0, row1) and columns [column0, column1) of one image times `scale`; zeros outside the image.
static Band fill_band(int slot, const Source& s, int image, float scale, int row0, int row1, int column0, int column1) {
    const int cp = s.padded_channels();
    Band band{nullptr, row0, column0, column1 - column0, cp};
    band.data = scratch(slot, int64_t(row1 - row0) * band.columns * cp + 2 * VL);
    const int first = column0 < 0 ? 0 : column0, last = column1 < s.width ? column1 : s.width;
    for (int row = row0; row < row1; ++row) {
        float* line = band.at(row, column0);
        if (row < 0 || row >= s.height) {
            std::memset(line, 0, sizeof(float) * band.columns * cp);
            continue;
        }
        std::memset(line, 0, sizeof(float) * (first - column0) * cp);
        const int64_t pixel0 = (int64_t(image) * s.height + row) * s.width;
        for (int column = first; column < last; ++column) {
            float* to = band.at(row, column);
            const int64_t pixel = pixel0 + column;
            if (s.output) {
                fill_gradient(to, s, pixel * s.channels, scale);
            } else {
                if (s.channels2) store(to + cp - VL, splat(0.0f));
                fill_channels(to, s.data, pixel * s.channels, s.channels, s.dtype, scale);
                if (s.channels2)
                    fill_channels(to + s.channels, s.data2, pixel * s.channels2, s.channels2, s.dtype, scale);
            }
        }
        if (column1 > last) std::memset(band.at(row, last), 0, sizeof(float) * (column1 - last) * cp);
    }
    return band;
}

// A dense NHWC tensor to write, split over a second one if given (either may be absent), with bias and activation.
struct Sink {
    Dtype dtype;
    int height, width, channels;
    void* data;
    int channels2 = 0;
    void* data2 = nullptr;
    const float* bias = nullptr;  // padded to whole vectors
    Activation activation = NONE;
    float slope = 0;

    void put(int64_t pixel, int c, vf v) const {
        if (bias) v += load(bias + c);
        v = activate(activation, v, slope);
        if (c + VL <= channels) {
            if (data) store_as(dtype, data, pixel * channels + c, v);
        } else if (c < channels || !channels2) {
            const int n = channels - c;
            if (n > 0 && data) store_part(dtype, data, pixel * channels + c, v, n);
            if (channels2 && data2) put_second(pixel, 0, v, n, VL - n < channels2 ? VL - n : channels2);
        } else if (data2) {
            const int done = c - channels, left = channels2 - done;
            if (left > 0) put_second(pixel, done, v, 0, left < VL ? left : VL);
        }
    }

private:
    void put_second(int64_t pixel, int first, vf v, int lane, int n) const {
        alignas(64) float lanes[2 * VL] = {};
        store(lanes, v);
        store_part(dtype, data2, pixel * channels2 + first, load(lanes + lane), n);
    }
};

}  // namespace KILN_NAMESPACE
}  // namespace kiln
