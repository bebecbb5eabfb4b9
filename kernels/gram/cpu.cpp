// gram on the CPU: half of the products, since the matrix is symmetric; backward is one product.
#include "../_cpu/gram.h"

namespace kiln {
namespace KILN_NAMESPACE {

template <class A> static Features features_of(const A& a) {
    return {Dtype(a.dtype), a.pixels, a.channels, bool(a.planar), a.features};
}

// features: (B, C, H, W), planar (NCHW) or NHWC; result: (B, C, C) float32.
KILN_FUNCTION(gram_forward,
              Pointer features, result;
              Integer dtype, batch, pixels, planar; Size channels;) {
    const Features f = features_of(arguments);
    float* result = arguments.result;
    const float scale = 1.0f / float(f.pixels * f.channels);
    for_each_gram(f, nullptr, arguments.batch, [=](int64_t image, const Triangle& sums) {
        write_symmetric(sums, scale, result + image * f.channels * f.channels);
    });
}

// grad: of the result, (B, C, C) float32; dfeatures: laid out as the features.
KILN_FUNCTION(gram_backward,
              Pointer features, grad, dfeatures;
              Integer dtype, batch, pixels, planar; Size channels;) {
    const Features f = features_of(arguments);
    const float scale = 1.0f / float(f.pixels * f.channels);
    gram_gradient(f, arguments.batch, arguments.grad, false, [=](int64_t) { return scale; }, arguments.dfeatures);
}

}  // namespace KILN_NAMESPACE
}  // namespace kiln
