// l1_autoencoder_loss on the CPU: per-sample mean |target - reconstruction| and its gradient in one pass over the data.
#include "../_cpu/vector.h"

namespace kiln {
namespace KILN_NAMESPACE {

constexpr int64_t CHUNK = 4096;  // elements summed in float32 before they join the float64 total

// pointers: target, reconstruction, per_sample (float32), sign of reconstruction - target (or null);
// integers: dtype, batch, elements per sample. The tensors are dense in the same order.
void l1_autoencoder_loss_forward(const Arguments& a) {
    const void *target = a.pointer<void>(0), *reconstruction = a.pointer<void>(1);
    float* per_sample = a.pointer<float>(2);
    void* sign = a.pointer<void>(3);
    const Dtype dtype = Dtype(a.integer(0));
    const int64_t batch = a.integers[1], size = a.integers[2], chunks = (size + CHUNK - 1) / CHUNK;
    double* partial = reinterpret_cast<double*>(scratch(7, 2 * batch * chunks + 2));

#pragma omp parallel for schedule(static)
    for (int64_t item = 0; item < batch * chunks; ++item) {
        const int64_t first = item / chunks * size + item % chunks * CHUNK;
        const int64_t left = size - item % chunks * CHUNK, n = left < CHUNK ? left : CHUNK;
        vf sum = splat(0.0f);
        for (int64_t i = 0; i < n; i += VL) {
            const int64_t at = first + i;
            const int part = n - i < VL ? int(n - i) : VL;
            const bool whole = part == VL;
            const vf t = whole ? load_as(dtype, target, at) : load_part(dtype, target, at, part);
            const vf r = whole ? load_as(dtype, reconstruction, at) : load_part(dtype, reconstruction, at, part);
            const vf d = r - t;
            sum += d < 0.0f ? -d : d;
            if (sign) {
                const vf s = d > 0.0f ? splat(1.0f) : d < 0.0f ? splat(-1.0f) : d;  // 0, or a NaN kept
                whole ? store_as(dtype, sign, at, s) : store_part(dtype, sign, at, s, part);
            }
        }
        double total = 0;
        for (int lane = 0; lane < VL; ++lane) total += sum[lane];
        partial[item] = total;
    }
    for (int64_t b = 0; b < batch; ++b) {
        double total = 0;
        for (int64_t c = 0; c < chunks; ++c) total += partial[b * chunks + c];
        per_sample[b] = float(total / double(size));
    }
}

// pointers: sign, coefficient per sample (float32), result; integers: dtype, batch, elements per sample.
void l1_autoencoder_loss_scale(const Arguments& a) {
    const void* sign = a.pointer<void>(0);
    const float* coefficient = a.pointer<float>(1);
    void* result = a.pointer<void>(2);
    const Dtype dtype = Dtype(a.integer(0));
    const int64_t batch = a.integers[1], size = a.integers[2], chunks = (size + CHUNK - 1) / CHUNK;

#pragma omp parallel for schedule(static)
    for (int64_t item = 0; item < batch * chunks; ++item) {
        const int64_t first = item / chunks * size + item % chunks * CHUNK;
        const int64_t left = size - item % chunks * CHUNK, n = left < CHUNK ? left : CHUNK;
        const float c = coefficient[item / chunks];
        int64_t i = 0;
        for (; i + VL <= n; i += VL) store_as(dtype, result, first + i, load_as(dtype, sign, first + i) * c);
        if (i < n)
            store_part(dtype, result, first + i, load_part(dtype, sign, first + i, int(n - i)) * c, int(n - i));
    }
}

}  // namespace KILN_NAMESPACE
}  // namespace kiln

KILN_REGISTER(l1_autoencoder_loss_forward)
KILN_REGISTER(l1_autoencoder_loss_scale)
