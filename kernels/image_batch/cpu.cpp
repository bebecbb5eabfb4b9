// image_batch on the CPU: rows of uint8 pixels, reversed where mirrored, as floating-point numbers in [-1, 1].
#include "../_cpu/parallel.h"

namespace kiln {
namespace KILN_NAMESPACE {

typedef uint8_t vb __attribute__((vector_size(VL), aligned(1), may_alias));
typedef uint16_t vs __attribute__((vector_size(VL * 2)));

// v / 127.5 - 1 of VL bytes, both operations rounded as in the reference. Bytes widen in two steps: the compiler has no
// instruction that converts one byte to four.
static inline vf scaled(const uint8_t* from) {
    const vs wide = __builtin_convertvector(*reinterpret_cast<const vb*>(from), vs);
    return __builtin_convertvector(__builtin_convertvector(wide, vi), vf) / splat(127.5f) - splat(1.0f);
}

template <Dtype DTYPE>
static void convert_row(const uint8_t* from, int64_t n, void* images, int64_t first) {
    int64_t i = 0;
    for (; i + VL <= n; i += VL) store_as(DTYPE, images, first + i, scaled(from + i));
    if (i == n) return;
    uint8_t rest[VL] = {};
    std::memcpy(rest, from + i, n - i);
    store_part(DTYPE, images, first + i, scaled(rest), int(n - i));
}

// store: (M, side, side, channels) uint8; rows (batch,) and offsets (batch, 2): int64, of windows that lie in the store;
// mirror: (batch,) uint8; images: (batch, resolution, resolution, channels).
KILN_FUNCTION(image_batch_forward,
              Pointer store, rows, offsets, mirror, images;
              Integer dtype, batch, side, channels, resolution;) {
    const uint8_t *store = arguments.store, *mirror = arguments.mirror;
    const int64_t *rows = arguments.rows, *offsets = arguments.offsets;
    void* images = arguments.images;
    const Dtype dtype = Dtype(arguments.dtype);
    const int64_t batch = arguments.batch, side = arguments.side, channels = arguments.channels;
    const int64_t resolution = arguments.resolution, length = resolution * channels;
    const auto convert = dtype == F32 ? convert_row<F32> : dtype == BF16 ? convert_row<BF16> : convert_row<F16>;

    for_parts(batch * resolution, [=](int64_t line) {
        const int64_t image = line / resolution, y = offsets[2 * image + 1] + line % resolution;
        const uint8_t* from = store + ((rows[image] * side + y) * side + offsets[2 * image]) * channels;
        if (mirror[image]) {
            uint8_t* reversed = reinterpret_cast<uint8_t*>(scratch(Slot::MIRRORED_ROW, (length + 3) / 4));
            for (int64_t x = 0; x < resolution; ++x)
                for (int64_t c = 0; c < channels; ++c)
                    reversed[x * channels + c] = from[(resolution - 1 - x) * channels + c];
            from = reversed;
        }
        convert(from, length, images, line * length);
    });
}

}  // namespace KILN_NAMESPACE
}  // namespace kiln
