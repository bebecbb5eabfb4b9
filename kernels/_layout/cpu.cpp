// Changes of the order in memory between (batch, channels, pixels) and (batch, pixels, channels), float32.
#include "../_cpu/parallel.h"

namespace kiln {
namespace KILN_NAMESPACE {

// to[c][r] = from[r][c] of up to VL rows and columns
static inline void transpose_block(const float* from, int64_t from_row, int rows, int columns, float* to, int64_t to_row) {
    vf block[VL];
    if (rows == VL && columns == VL) {
        for (int r = 0; r < VL; ++r) block[r] = load(from + r * from_row);
        transpose(block);
        for (int c = 0; c < VL; ++c) store(to + c * to_row, block[c]);
        return;
    }
    for (int r = 0; r < VL; ++r) block[r] = r < rows ? load_part(F32, from, r * from_row, columns) : splat(0.0f);
    transpose(block);
    for (int c = 0; c < columns; ++c) store_part(F32, to, c * to_row, block[c], rows);
}

// y (batch, columns, rows) = x (batch, rows, columns)
KILN_FUNCTION(layout_transpose, Pointer x, y; Integer batch, rows, columns;) {
    constexpr int64_t RUN = 4 * VL;  // columns of a part
    const float* x = arguments.x;
    float* y = arguments.y;
    const int64_t rows = arguments.rows, columns = arguments.columns, runs = (columns + RUN - 1) / RUN;
    for_parts(arguments.batch * runs, [=](int64_t part) {
        const int64_t first = part / runs * rows * columns, c0 = part % runs * RUN;
        const int64_t last = c0 + RUN < columns ? c0 + RUN : columns;
        for (int64_t r = 0; r < rows; r += VL)
            for (int64_t c = c0; c < last; c += VL)
                transpose_block(x + first + r * columns + c, columns, int(rows - r < VL ? rows - r : VL),
                                int(last - c < VL ? last - c : VL), y + first + c * rows + r, rows);
    });
}

}  // namespace KILN_NAMESPACE
}  // namespace kiln
