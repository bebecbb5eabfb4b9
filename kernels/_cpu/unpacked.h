// A convolution over few pixels, whose weights are more than its pixels: three products of matrices that read the weights
// once, as they lie. Of input and output one is the smaller (at stride 1 the output, of a transposed convolution the
// input). With a row for each of its pixels it is a matrix `small`; what a pixel meets of the larger one, tap by tap, is
// a row of `columns`; the weight is a matrix with a row for each channel of the smaller one.
#pragma once
#include "gemm.h"
#include "parallel.h"
#include "tensors.h"

namespace kiln {
namespace KILN_NAMESPACE {

// Pixel (r, c) of the smaller tensor meets those of the larger from (r * stride - padding, c * stride - padding) on.
struct Meeting {
    int kernel, stride, padding;
    int rows, width, channels;  // of the smaller tensor
    int large_rows, large_width, large_channels;
    bool tap_first;  // a weight's row has its taps one after another, and for each the larger tensor's channels

    int taps() const { return kernel * kernel; }
    int depth() const { return large_channels * taps(); }
    int step() const { return round_up(depth(), VL); }  // from a row of columns to the next
    int64_t pixels(int64_t images) const { return images * rows * width; }
    // The rows and columns of the larger tensor that are met, and all of its own.
    Span reach(int count, int large) const {
        const int end = (count - 1) * stride - padding + kernel;
        return {-padding, end > large ? end : large};
    }
    Span reached_rows() const { return reach(rows, large_rows); }
    Span reached_columns() const { return reach(width, large_width); }
};

// The range of `count` things that belongs to a part, in whole units.
static inline Span share_of(int count, int unit, int64_t part, int parts) {
    const int64_t units = (count + unit - 1) / unit;
    const int first = int(units * part / parts) * unit, last = int(units * (part + 1) / parts) * unit;
    return {first, last < count ? last : count};
}

// columns[pixel]: what each pixel of the smaller tensor meets of `large`, a dense band over `reach`.
static void gather_columns(const Meeting& m, const Band& large, int64_t images, bool tap_first, float* columns) {
    const int channels = m.large_channels, taps = m.taps(), depth = m.depth(), step = m.step();
    for_parts(images * m.rows, [&](int64_t row) {
        const Band image = large.image(int(row / m.rows));
        float* to = columns + row * m.width * step;
        for (int c = 0; c < m.width; ++c, to += step) {
            for (int t = 0; t < taps; ++t) {
                const float* from = image.at(int(row % m.rows) * m.stride - m.padding + t / m.kernel,
                                             c * m.stride - m.padding + t % m.kernel);
                if (tap_first || taps == 1)
                    std::memcpy(to + t * channels, from, sizeof(float) * channels);
                else
                    for (int j = 0; j < channels; ++j) to[j * taps + t] = from[j];
            }
            for (int k = depth; k < step; ++k) to[k] = 0.0f;
        }
    });
}

#if KILN_ISA == 2
constexpr int DOT_ROWS = 6;  // of a tile of scalar products, DOT_COLUMNS wide
#else
constexpr int DOT_ROWS = 2;
#endif
constexpr int DOT_COLUMNS = 4;

// c[r][i] += sum over k of a[r][k] * b[i][k]; a is zero from `depth` to the next whole vector, b is not read there. Memory is
// asked for `further` rows from `ahead` on meanwhile.
template <int ROWS, int COLUMNS>
static void dot_tile(const float* a, int64_t a_row, const float* b, int64_t b_row, int depth, float* c, int64_t c_row,
                     const float* ahead, int further) {
    vf sum[ROWS][COLUMNS] = {};
    const auto add = [&](int k, const vf* right) {
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) {
            const vf left = load(a + r * a_row + k);
#pragma GCC unroll 8
            for (int i = 0; i < COLUMNS; ++i) sum[r][i] += left * right[i];
        }
    };
    int k = 0;
    vf right[COLUMNS];
    for (; k + VL <= depth; k += VL) {
#pragma GCC unroll 8
        for (int i = 0; i < COLUMNS; ++i) right[i] = load(b + i * b_row + k);
        for (int i = 0; i < further; ++i) __builtin_prefetch(ahead + i * b_row + k, 0, 2);
        add(k, right);
    }
    if (k < depth) {
        for (int i = 0; i < COLUMNS; ++i) right[i] = load_part(F32, b + i * b_row, k, depth - k);
        add(k, right);
    }
    for (int r = 0; r < ROWS; ++r) {
        if constexpr (COLUMNS == 4) {
            quad total;
            std::memcpy(&total, c + r * c_row, sizeof total);
            total += sums_of_four(sum[r]);
            std::memcpy(c + r * c_row, &total, sizeof total);
        } else {
            for (int i = 0; i < COLUMNS; ++i) c[r * c_row + i] += sum_lanes(sum[r][i]);
        }
    }
}

template <int COLUMNS> static inline auto dot_tile_of(int rows) {
    using Tile = void (*)(const float*, int64_t, const float*, int64_t, int, float*, int64_t, const float*, int);
    static constexpr Tile tiles[] = {
        nullptr,
        dot_tile<1, COLUMNS>,
        dot_tile<2, COLUMNS>,
#if KILN_ISA == 2
        dot_tile<3, COLUMNS>,
        dot_tile<4, COLUMNS>,
        dot_tile<5, COLUMNS>,
        dot_tile<6, COLUMNS>,
#endif
    };
    return tiles[rows];
}

// From the larger to the smaller tensor: to[pixel][i] = columns[pixel] . weight[i], `to` with rows of `padded` floats, for the
// rows [i0, i1) of the weight. The columns are cut so that a piece of them stays in a cache.
static void dot_rows(const Meeting& m, const float* columns, const float* weight, int64_t pixels, int i0, int i1, float* to,
                     int padded) {
    constexpr int64_t CACHED = 96 << 10;  // floats
    const int depth = m.depth(), step = m.step();
    const int64_t fit = CACHED / pixels / VL * VL, piece = fit > 32 * VL ? fit : 32 * VL;
    const int64_t cuts = (pixels + DOT_ROWS - 1) / DOT_ROWS;
    for (int64_t p = 0; p < pixels; ++p) std::memset(to + p * padded + i0, 0, sizeof(float) * (i1 - i0));
    for (int k0 = 0; k0 < depth; k0 += int(piece)) {
        const int length = depth - k0 < piece ? depth - k0 : int(piece);
        for (int i = i0; i < i1;) {
            const bool whole = i + DOT_COLUMNS <= i1;
            const float* b = weight + int64_t(i) * depth + k0;
            for (int64_t cut = 0; cut < cuts; ++cut) {
                const int64_t first = pixels * cut / cuts, last = pixels * (cut + 1) / cuts;
                // of the next rows each cut asks for its share
                const Span share = i + 2 * DOT_COLUMNS <= i1 ? share_of(DOT_COLUMNS, 1, cut, int(cuts)) : Span{0, 0};
                (whole ? dot_tile_of<DOT_COLUMNS>(int(last - first)) : dot_tile_of<1>(int(last - first)))(
                    columns + first * step + k0, step, b, depth, length, to + first * padded + i, padded,
                    b + int64_t(DOT_COLUMNS + share.first) * depth, share.last - share.first);
            }
            i += whole ? DOT_COLUMNS : 1;
        }
    }
}

constexpr int COPIED_ROWS = 64, COPIED_COLUMNS = 512;  // of the weight, which are multiplied from a copy in a cache

// From the smaller to the larger tensor: products[pixel][k] = sum over i of small[pixel][i] * weight[i][k], k in [k0, k1).
static void multiply_rows(const Meeting& m, const float* small, const float* weight, int64_t pixels, int k0, int k1,
                          float* products) {
    const int depth = m.depth(), step = m.step();
    float* copy = scratch(Slot::COPIED_WEIGHTS, COPIED_ROWS * COPIED_COLUMNS);
    for (int k = k0; k < k1; k += COPIED_COLUMNS) {
        const int count = k1 - k < COPIED_COLUMNS ? k1 - k : COPIED_COLUMNS;
        for (int i0 = 0; i0 < m.channels; i0 += COPIED_ROWS) {
            const int rows = m.channels - i0 < COPIED_ROWS ? m.channels - i0 : COPIED_ROWS;
            for (int i = 0; i < rows; ++i)
                std::memcpy(copy + i * COPIED_COLUMNS, weight + int64_t(i0 + i) * depth + k, sizeof(float) * count);
            Product p{};
            p.a = small + i0, p.a_row = m.channels, p.a_step = 1;
            p.b = copy, p.b_step = COPIED_COLUMNS;
            p.segments = 1, p.depth = rows;
            p.c = products + k, p.c_row = step, p.accumulate = i0 > 0;
            // while one panel is multiplied, memory is asked for its share of the next rows
            const int columns = round_up(count, VL), next = m.channels - i0 - rows < rows ? m.channels - i0 - rows : rows;
            for (int n0 = 0; n0 < columns; p.b += 2 * VL, p.c += 2 * VL, n0 += 2 * VL) {
                for (int i = next * n0 / columns; i < next * (n0 + 2 * VL) / columns && i < next; ++i)
                    for (int line = 0; line < count; line += 16)
                        __builtin_prefetch(weight + int64_t(i0 + rows + i) * depth + k + line, 0, 2);
                multiply_panel(p, int(pixels), panel_width(n0, columns));
            }
        }
    }
}

// sums[c] = what the smaller tensor's pixels give to pixel (row, column) of an image of the larger one. products: those of
// the image
static void scatter_columns(const Meeting& m, const float* products, int row, int column, float* sums) {
    const int channels = m.large_channels, taps = m.taps(), step = m.step(), padded = round_up(channels, VL);
    std::memset(sums, 0, sizeof(float) * padded);
    for (int a = 0; a < m.kernel; ++a) {
        const int r = row + m.padding - a;
        if (r < 0 || r % m.stride || r / m.stride >= m.rows) continue;
        for (int b = 0; b < m.kernel; ++b) {
            const int c = column + m.padding - b;
            if (c < 0 || c % m.stride || c / m.stride >= m.width) continue;
            const float* from = products + int64_t(r / m.stride * m.width + c / m.stride) * step;
            const int t = a * m.kernel + b;
            if (m.tap_first || taps == 1)
                for (int j = 0; j < channels; ++j) sums[j] += from[t * channels + j];
            else
                for (int j = 0; j < channels; ++j) sums[j] += from[j * taps + t];
        }
    }
}

// The weight's gradient: to[i][k] = sum over pixels of small[pixel][i] * columns[pixel][k], for the rows [i0, i1).
static void multiply_pixels(const Meeting& m, const float* small, const float* columns, int64_t pixels, int i0, int i1,
                            float* to) {
    constexpr int ROWS = MR < 7 ? MR : 7;
    const int depth = m.depth(), step = m.step();
    float* copy = scratch(Slot::COPIED_WEIGHTS, COPIED_ROWS * COPIED_COLUMNS);
    for (int i = i0; i < i1; i += ROWS) {
        const int rows = i1 - i < ROWS ? i1 - i : ROWS;
        for (int k = 0; k < depth; k += COPIED_COLUMNS) {
            const int count = depth - k < COPIED_COLUMNS ? depth - k : COPIED_COLUMNS;
            Product p{};
            p.a = small + i, p.a_row = 1, p.a_step = m.channels;
            p.b = columns + k, p.b_step = step;
            p.segments = 1, p.depth = int(pixels);
            p.c = copy, p.c_row = COPIED_COLUMNS;
            multiply(p, rows, round_up(count, VL));
            for (int r = 0; r < rows; ++r)
                std::memcpy(to + int64_t(i + r) * depth + k, copy + r * COPIED_COLUMNS, sizeof(float) * count);
        }
    }
}

}  // namespace KILN_NAMESPACE
}  // namespace kiln
