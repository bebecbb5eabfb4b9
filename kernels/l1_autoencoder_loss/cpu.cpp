// l1_autoencoder_loss on the CPU: per-sample mean |target - reconstruction|. Backward needs the signs of the differences
// only, two bits each.
#include "../_cpu/parallel.h"

namespace kiln {
namespace KILN_NAMESPACE {

constexpr int64_t CHUNK = 4096;  // elements summed in float32 before they join the float64 total
constexpr int GROUP = 64;        // elements whose signs share 16 bytes: byte i has two bits each of i, i + 16, i + 32, i + 48

typedef uint8_t vb __attribute__((vector_size(VL), aligned(1), may_alias));
typedef uint16_t vs __attribute__((vector_size(VL * 2)));

// Each converts in two steps: the compiler has no instruction that converts four bytes to one or back.
static inline void store_bytes(uint8_t* to, vu v) {
    *reinterpret_cast<vb*>(to) = __builtin_convertvector(__builtin_convertvector(v, vs), vb);
}
static inline vu load_bytes(const uint8_t* from) {
    return __builtin_convertvector(__builtin_convertvector(*reinterpret_cast<const vb*>(from), vs), vu);
}

static inline int64_t signs_per_sample(int64_t size) { return (size + GROUP - 1) / GROUP * (GROUP / 4); }

// The signs of the difference and its sum over one group, of which `n` elements exist.
template <bool WHOLE>
static inline void forward_group(Dtype dtype, const void* target, const void* reconstruction, int64_t first, int n,
                                 uint8_t* signs, vf* sum) {
    for (int lane = 0; lane < GROUP / 4; lane += VL) {
        vu code = {};
        for (int j = 0; j < 4; ++j) {
            const int at = j * (GROUP / 4) + lane;
            const int part = n - at < 0 ? 0 : n - at < VL ? n - at : VL;
            const vf d = WHOLE ? load_as(dtype, reconstruction, first + at) - load_as(dtype, target, first + at)
                               : load_part(dtype, reconstruction, first + at, part) -
                                     load_part(dtype, target, first + at, part);
            sum[j] += (vf)((vu)d & 0x7fffffffu);
            // the sign as a two-bit whole number, -2 for a NaN (which compares with nothing)
            const vu above = ~(vu)(d <= 0.0f), below = ~(vu)(d >= 0.0f);
            code |= ((below & 2u) | ((above ^ below) & 1u)) << (2 * j);
        }
        if (signs) store_bytes(signs + lane, code);
    }
}

template <Dtype DTYPE>
static double forward_chunk(const void* target, const void* reconstruction, int64_t first, int64_t n, uint8_t* signs) {
    vf sum[4] = {};
    int64_t i = 0;
    for (; i + GROUP <= n; i += GROUP)
        forward_group<true>(DTYPE, target, reconstruction, first + i, GROUP, signs ? signs + i / 4 : nullptr, sum);
    if (i < n)
        forward_group<false>(DTYPE, target, reconstruction, first + i, int(n - i), signs ? signs + i / 4 : nullptr, sum);
    const vf all = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    double total = 0;
    for (int lane = 0; lane < VL; ++lane) total += all[lane];
    return total;
}

// target, reconstruction: (batch, size), dense in the same order; per_sample (batch,) and mean (): float32;
// signs: of reconstruction - target, or null.
KILN_FUNCTION(l1_autoencoder_loss_forward,
              Pointer target, reconstruction, per_sample, mean; Optional signs;
              Integer dtype, batch, size;) {
    const void *target = arguments.target, *reconstruction = arguments.reconstruction;
    float *per_sample = arguments.per_sample, *mean_of_all = arguments.mean;
    uint8_t* signs = arguments.signs;
    const Dtype dtype = Dtype(arguments.dtype);
    const int64_t batch = arguments.batch, size = arguments.size, chunks = (size + CHUNK - 1) / CHUNK;
    double* partial = reinterpret_cast<double*>(scratch(Slot::CHUNK_SUMS, 2 * batch * chunks + 2));
    const auto chunk_of = dtype == F32 ? forward_chunk<F32> : dtype == BF16 ? forward_chunk<BF16> : forward_chunk<F16>;

    for_parts(batch * chunks, [=](int64_t item) {
        const int64_t sample = item / chunks, start = item % chunks * CHUNK, left = size - start;
        partial[item] = chunk_of(target, reconstruction, sample * size + start, left < CHUNK ? left : CHUNK,
                                 signs ? signs + sample * signs_per_sample(size) + start / 4 : nullptr);
    });
    double mean = 0;
    for (int64_t b = 0; b < batch; ++b) {
        double total = 0;
        for (int64_t c = 0; c < chunks; ++c) total += partial[b * chunks + c];
        per_sample[b] = float(total / double(size));
        mean += total / double(size);
    }
    *mean_of_all = float(mean / double(batch));
}

template <bool WHOLE>
static inline void backward_group(Dtype dtype, const uint8_t* signs, float coefficient, void* for_target,
                                  void* for_reconstruction, int64_t first, int n) {
    for (int lane = 0; lane < GROUP / 4; lane += VL) {
        const vu code = load_bytes(signs + lane);
        for (int j = 0; j < 4; ++j) {
            const int at = j * (GROUP / 4) + lane;
            const int part = n - at < 0 ? 0 : n - at < VL ? n - at : VL;
            const vf sign = __builtin_convertvector((vi)(code << (30 - 2 * j)) >> 30, vf);
            const vf g = sign < -1.5f ? splat(__builtin_nanf("")) : sign * coefficient;
            if (for_reconstruction)
                WHOLE ? store_as(dtype, for_reconstruction, first + at, g)
                      : store_part(dtype, for_reconstruction, first + at, g, part);
            if (for_target)
                WHOLE ? store_as(dtype, for_target, first + at, -g)
                      : store_part(dtype, for_target, first + at, -g, part);
        }
    }
}

template <Dtype DTYPE>
static void backward_chunk(const uint8_t* signs, float coefficient, void* for_target, void* for_reconstruction,
                           int64_t first, int64_t n) {
    int64_t i = 0;
    for (; i + GROUP <= n; i += GROUP)
        backward_group<true>(DTYPE, signs + i / 4, coefficient, for_target, for_reconstruction, first + i, GROUP);
    if (i < n)
        backward_group<false>(DTYPE, signs + i / 4, coefficient, for_target, for_reconstruction, first + i, int(n - i));
}

// grad_per_sample, grad_mean: float32, or null; dtarget, dreconstruction: (batch, size), null where not needed.
KILN_FUNCTION(l1_autoencoder_loss_backward,
              Pointer signs; Optional grad_per_sample, grad_mean, dtarget, dreconstruction;
              Integer dtype, batch, size;) {
    const uint8_t* signs = arguments.signs;
    const float *of_samples = arguments.grad_per_sample, *of_mean = arguments.grad_mean;
    void *for_target = arguments.dtarget, *for_reconstruction = arguments.dreconstruction;
    const Dtype dtype = Dtype(arguments.dtype);
    const int64_t batch = arguments.batch, size = arguments.size, chunks = (size + CHUNK - 1) / CHUNK;
    const auto chunk_of = dtype == F32 ? backward_chunk<F32> : dtype == BF16 ? backward_chunk<BF16> : backward_chunk<F16>;

    for_parts(batch * chunks, [=](int64_t item) {
        const int64_t sample = item / chunks, start = item % chunks * CHUNK, left = size - start;
        const float coefficient = (of_mean ? *of_mean / float(batch) : 0.0f) + (of_samples ? of_samples[sample] : 0.0f);
        chunk_of(signs + sample * signs_per_sample(size) + start / 4, coefficient / float(size), for_target,
                 for_reconstruction, sample * size + start, left < CHUNK ? left : CHUNK);
    });
}

}  // namespace KILN_NAMESPACE
}  // namespace kiln
