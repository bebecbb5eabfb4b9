// gram on the CPU: half of the products, since the matrix is symmetric; backward is one product.
#include "../_cpu/gram.h"

namespace kiln {
namespace KILN_NAMESPACE {

// pointers: features, result (B, C, C) float32; integers: dtype, batch, pixels, channels, planar (NCHW, else NHWC).
void gram_forward(const Arguments& a) {
    const Features f{Dtype(a.integer(0)), a.integers[2], a.integer(3), bool(a.integer(4)), a.pointer<void>(0)};
    float* result = a.pointer<float>(1);
    const float scale = 1.0f / float(f.pixels * f.channels);
    for_each_gram(f, nullptr, a.integers[1], [=](int64_t image, const Triangle& sums) {
        write_symmetric(sums, scale, result + image * f.channels * f.channels);
    });
}

// pointers: features, gradient of the result (B, C, C) float32, gradient of the features;
// integers: dtype, batch, pixels, channels, planar (NCHW, else NHWC).
void gram_backward(const Arguments& a) {
    const Features f{Dtype(a.integer(0)), a.integers[2], a.integer(3), bool(a.integer(4)), a.pointer<void>(0)};
    const float scale = 1.0f / float(f.pixels * f.channels);
    gram_gradient(f, a.integers[1], a.pointer<float>(1), false, [=](int64_t) { return scale; }, a.pointer<void>(2));
}

}  // namespace KILN_NAMESPACE
}  // namespace kiln

KILN_REGISTER(gram_forward)
KILN_REGISTER(gram_backward)
