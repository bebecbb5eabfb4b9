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

// a, b: (B, C, H, W), each planar (NCHW) or NHWC; per_sample (B,) and mean (): float32;
// difference: Gram(a) - Gram(b), (B, C, C) float32, or null.
KILN_FUNCTION(style_loss_forward,
              Pointer a, b, per_sample, mean; Optional difference;
              Integer dtype, batch, pixels, squared, a_planar, b_planar; Size channels;) {
    const Dtype dtype = Dtype(arguments.dtype);
    const int64_t batch = arguments.batch, pixels = arguments.pixels;
    const int channels = arguments.channels;
    const bool squared = arguments.squared;
    const Features a{dtype, pixels, channels, bool(arguments.a_planar), arguments.a};
    const Features b{dtype, pixels, channels, bool(arguments.b_planar), arguments.b};
    float *per_sample = arguments.per_sample, *difference = arguments.difference, *mean_of_all = arguments.mean;
    const float scale = 1.0f / float(pixels * channels);
    for_each_gram(a, &b, batch, [=](int64_t image, const Triangle& sums) {
        const double norm = squared_norm(sums, scale);
        per_sample[image] = float(squared ? norm : std::sqrt(norm));
        if (difference) write_symmetric(sums, scale, difference + image * channels * channels);
    });
    double mean = 0;
    for (int64_t image = 0; image < batch; ++image) mean += per_sample[image];
    *mean_of_all = float(mean / double(batch));
}

// a, b, difference, per_sample: as in the forward pass; grad_per_sample, grad_mean: the gradients of its results, or
// null; da, db: laid out as a and b, null where not needed.
KILN_FUNCTION(style_loss_backward,
              Pointer a, b, difference, per_sample; Optional grad_per_sample, grad_mean, da, db;
              Integer dtype, batch, pixels, squared, a_planar, b_planar; Size channels;) {
    const Dtype dtype = Dtype(arguments.dtype);
    const int64_t batch = arguments.batch, pixels = arguments.pixels;
    const int channels = arguments.channels;
    const bool squared = arguments.squared;
    const float *difference = arguments.difference, *per_sample = arguments.per_sample;
    const float *of_samples = arguments.grad_per_sample, *of_mean = arguments.grad_mean;
    const Features both[] = {{dtype, pixels, channels, bool(arguments.a_planar), arguments.a},
                             {dtype, pixels, channels, bool(arguments.b_planar), arguments.b}};
    void* const results[] = {arguments.da, arguments.db};
    for (int side = 0; side < 2; ++side) {
        if (!results[side]) continue;
        const float scale = (side == 0 ? 1.0f : -1.0f) / float(pixels * channels);
        const auto factor = [=](int64_t image) {
            const float upstream =
                (of_mean ? *of_mean / float(batch) : 0.0f) + (of_samples ? of_samples[image] : 0.0f);
            const float norm = per_sample[image];
            return norm == 0.0f ? 0.0f : upstream * scale * (squared ? 2.0f : 1.0f / norm);
        };
        gram_gradient(both[side], batch, difference, true, factor, results[side]);
    }
}

}  // namespace KILN_NAMESPACE
}  // namespace kiln
