// The register-tile matrix product in which every form of a convolution ends.
#pragma once
#include "vector.h"

namespace kiln {
namespace KILN_NAMESPACE {

// C[m, n] = sum over segments s and k < depth of A[segment s][m, k] * B[segment s][k, n], all float32; with
// `accumulate` the sum is added to C.
struct Product {
    const float* a;
    int64_t a_row, a_step;  // distance between rows m, and between successive k
    const float* b;
    int64_t b_step;         // distance between successive k; the columns of B are read in whole vectors
    int64_t b_vector = VL;  // distance between neighbouring vectors of columns
    int segments;
    const int64_t* a_segment;  // offset of each segment, or null where there is one at offset 0
    const int64_t* b_segment;
    int depth;
    float* c;
    int64_t c_row;
    bool accumulate;
    // the matrix that is multiplied next, or null: memory is asked for it meanwhile; its segments and steps are those of b
    const float* ahead;
};

template <int ROWS, int VECTORS> static void register_tile(const Product& p) {
    vf sum[ROWS][VECTORS];
#pragma GCC unroll 16
    for (int m = 0; m < ROWS; ++m)
        for (int v = 0; v < VECTORS; ++v) sum[m][v] = splat(0.0f);
    for (int m = 0; m < ROWS; ++m)  // memory fetches the results' cache lines while the products are formed
        for (int v = 0; v < VECTORS; ++v) __builtin_prefetch(p.c + m * p.c_row + v * VL, 1);
    const int64_t a_row = p.a_row, a_step = p.a_step, b_step = p.b_step, b_vector = p.b_vector;
    const int depth = p.depth;
    for (int s = 0; s < p.segments; ++s) {
        const float* a = p.a + (p.a_segment ? p.a_segment[s] : 0);
        const float* b = p.b + (p.b_segment ? p.b_segment[s] : 0);
        const float* ahead = p.ahead ? p.ahead + (p.b_segment ? p.b_segment[s] : 0) : b;
        for (int k = 0; k < depth; ++k) {
            for (int v = 0; v < VECTORS; ++v) __builtin_prefetch(ahead + v * b_vector, 0, 2);
            ahead += b_step;
            const float* third[(ROWS + 2) / 3];  // each third row: the two after it need no register of their own
#pragma GCC unroll 8
            for (int t = 0; t < (ROWS + 2) / 3; ++t) third[t] = t ? third[t - 1] + 3 * a_row : a;
            vf column[VECTORS];
            for (int v = 0; v < VECTORS; ++v) column[v] = load(b + v * b_vector);
#pragma GCC unroll 16
            for (int m = 0; m < ROWS; ++m) {
                const vf scalar = splat(third[m / 3][m % 3 * a_row]);
                for (int v = 0; v < VECTORS; ++v) sum[m][v] += scalar * column[v];
            }
            a += a_step;
            b += b_step;
        }
    }
    // C is added last: long sums are then made of short sums, which keeps their rounding error small
    float* c = p.c;
    if (p.accumulate) {
#pragma GCC unroll 16
        for (int m = 0; m < ROWS; ++m, c += p.c_row)
            for (int v = 0; v < VECTORS; ++v) store(c + v * VL, load(c + v * VL) + sum[m][v]);
    } else {
#pragma GCC unroll 16
        for (int m = 0; m < ROWS; ++m, c += p.c_row)
            for (int v = 0; v < VECTORS; ++v) store(c + v * VL, sum[m][v]);
    }
}

using Tile = void (*)(const Product&);
template <int VECTORS> static inline Tile tile_of(int rows) {
    static constexpr Tile tiles[15] = {
        nullptr,
        register_tile<1, VECTORS>,
        register_tile<2, VECTORS>,
        register_tile<3, VECTORS>,
        register_tile<4, VECTORS>,
        register_tile<5, VECTORS>,
        register_tile<6, VECTORS>,
#if KILN_ISA == 2
        register_tile<7, VECTORS>,
        register_tile<8, VECTORS>,
        register_tile<9, VECTORS>,
        register_tile<10, VECTORS>,
        register_tile<11, VECTORS>,
        register_tile<12, VECTORS>,
        register_tile<13, VECTORS>,
        register_tile<14, VECTORS>,
#endif
    };
    return tiles[rows];
}

// Width in columns of the panel that starts at column n0 of n_padded: two vectors, or one for the last panel.
static inline int panel_width(int n0, int n_padded) { return n_padded - n0 >= 2 * VL ? 2 * VL : VL; }
// First column of the panel that a column lies in.
static inline int panel_start(int column) { return column / (2 * VL) * (2 * VL); }

// Multiplies all rows of one column panel, in register tiles of nearly equal height. p.a and p.c point at row 0.
static inline void multiply_panel(Product p, int rows, int width) {
    const int cuts = (rows + MR - 1) / MR;
    const float* a = p.a;
    float* c = p.c;
    const float* ahead = p.ahead;
    for (int i = 0, done = 0; i < cuts; ++i) {
        const int height = rows / cuts + (i < rows % cuts);
        p.ahead = i == cuts - 1 ? ahead : nullptr;
        p.a = a + done * p.a_row;
        p.c = c + done * p.c_row;
        (width == 2 * VL ? tile_of<2>(height) : tile_of<1>(height))(p);
        done += height;
    }
}

// Multiplies all rows and columns of a B that is not packed: its columns lie side by side, as those of C do.
static inline void multiply(Product p, int rows, int columns) {
    for (int n0 = 0; n0 < columns;) {
        const int width = panel_width(n0, columns);
        multiply_panel(p, rows, width);
        p.b += width;
        p.c += width;
        n0 += width;
    }
}

}  // namespace KILN_NAMESPACE
}  // namespace kiln
