// style_loss on the CPU: Gram(a) - Gram(b) as one set of products, half of them by symmetry, and its Frobenius norm.
#include <cmath>

#include "../_cpu/gram.h"

namespace kiln {
namespace KILN_NAMESPACE {

// The squared Frobenius norm of the symmetric matrix times `scale`.
static double squared_norm(const Triangle& sums, float scale) {
    double total = 0;
    for (int n = 0; n < sums.panels(); ++n)
        for (int m = 0; m <= n; ++m) {
            const float* block = sums.block(m, n);
            const int rows = sums.extent(m), columns = sums.extent(n);
            for (int i = 0; i < rows; ++i) {
                float twice = 0;
                for (int j = m == n ? i + 1 : 0; j < columns; ++j) {
                    const float value = block[i * PANEL + j] * scale;
                    twice += value * value;
                }
                const double once = m == n ? double(block[i * PANEL + i]) * scale : 0.0;
                total += 2.0 * twice + once * once;
            }
        }
    return total;
}

// pointers: a, b, per_sample (float32), mean (float32), Gram(a) - Gram(b) (B, C, C) float32 (or null);
// integers: dtype, batch, pixels, channels, squared, a planar (NCHW, else NHWC), b planar.
void style_loss_forward(const Arguments& arguments) {
    const Dtype dtype = Dtype(arguments.integer(0));
    const int64_t batch = arguments.integers[1], pixels = arguments.integers[2];
    const int channels = arguments.integer(3);
    const bool squared = arguments.integer(4);
    const Features a{dtype, pixels, channels, bool(arguments.integer(5)), arguments.pointer<void>(0)};
    const Features b{dtype, pixels, channels, bool(arguments.integer(6)), arguments.pointer<void>(1)};
    float *per_sample = arguments.pointer<float>(2), *difference = arguments.pointer<float>(4);
    const float scale = 1.0f / float(pixels * channels);
    for_each_gram(a, &b, batch, [=](int64_t image, const Triangle& sums) {
        const double norm = squared_norm(sums, scale);
        per_sample[image] = float(squared ? norm : std::sqrt(norm));
        if (difference) write_symmetric(sums, scale, difference + image * channels * channels);
    });
    double mean = 0;
    for (int64_t image = 0; image < batch; ++image) mean += per_sample[image];
    *arguments.pointer<float>(3) = float(mean / double(batch));
}

// pointers: a, b, Gram(a) - Gram(b), per_sample, gradient of per_sample (or null), of mean (or null), of a (or
// null), of b (or null); integers as in forward.
void style_loss_backward(const Arguments& arguments) {
    const Dtype dtype = Dtype(arguments.integer(0));
    const int64_t batch = arguments.integers[1], pixels = arguments.integers[2];
    const int channels = arguments.integer(3);
    const bool squared = arguments.integer(4);
    const float *difference = arguments.pointer<float>(2), *per_sample = arguments.pointer<float>(3);
    const float *of_samples = arguments.pointer<float>(4), *of_mean = arguments.pointer<float>(5);
    for (int side = 0; side < 2; ++side) {
        void* result = arguments.pointer<void>(6 + side);
        if (!result) continue;
        const float scale = (side == 0 ? 1.0f : -1.0f) / float(pixels * channels);
        const auto factor = [=](int64_t image) {
            const float upstream =
                (of_mean ? *of_mean / float(batch) : 0.0f) + (of_samples ? of_samples[image] : 0.0f);
            const float norm = per_sample[image];
            return norm == 0.0f ? 0.0f : upstream * scale * (squared ? 2.0f : 1.0f / norm);
        };
        const Features f{dtype, pixels, channels, bool(arguments.integer(5 + side)), arguments.pointer<void>(side)};
        gram_gradient(f, batch, difference, true, factor, result);
    }
}

}  // namespace KILN_NAMESPACE
}  // namespace kiln

KILN_REGISTER(style_loss_forward)
KILN_REGISTER(style_loss_backward)
