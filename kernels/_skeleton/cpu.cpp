// skeleton on the CPU, compiled once for each instruction set: raw addresses, no torch, all checks done in __init__.py.
#include "../_cpu/parallel.h"

namespace kiln {
namespace KILN_NAMESPACE {

// The names are those that __init__.py passes; x, y: (batch, size), scale: (batch,) float32.
KILN_FUNCTION(skeleton_forward,
              Pointer x, scale, y;
              Integer dtype, batch, size;) {
    const Dtype dtype = Dtype(arguments.dtype);
    const void* x = arguments.x;
    const float* scale = arguments.scale;
    void* y = arguments.y;
    const int64_t size = arguments.size;
    for_parts(arguments.batch, [=](int64_t sample) {
        for (int64_t i = 0; i < size; i += VL) {
            const int n = size - i < VL ? int(size - i) : VL;
            store_part(dtype, y, sample * size + i, load_part(dtype, x, sample * size + i, n) * scale[sample], n);
        }
    });
}

// dx and dscale (float32) are null where not needed.
KILN_FUNCTION(skeleton_backward,
              Pointer grad, x, scale; Optional dx, dscale;
              Integer dtype, batch, size;) {
    const Dtype dtype = Dtype(arguments.dtype);
    const void *grad = arguments.grad, *x = arguments.x;
    const float* scale = arguments.scale;
    void* dx = arguments.dx;
    float* dscale = arguments.dscale;
    const int64_t size = arguments.size;
    for_parts(arguments.batch, [=](int64_t sample) {
        vf sum = splat(0.0f);
        for (int64_t i = 0; i < size; i += VL) {
            const int64_t at = sample * size + i;
            const int n = size - i < VL ? int(size - i) : VL;
            const vf g = load_part(dtype, grad, at, n);
            if (dx) store_part(dtype, dx, at, g * scale[sample], n);
            if (dscale) sum += g * load_part(dtype, x, at, n);
        }
        if (dscale) dscale[sample] = sum_lanes(sum);
    });
}

}  // namespace KILN_NAMESPACE
}  // namespace kiln
