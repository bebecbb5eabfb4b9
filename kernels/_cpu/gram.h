// Gram matrices of features, of which only the upper triangle is computed, and the product that is their backward.
#pragma once
#include "gemm.h"
#include "parallel.h"

namespace kiln {
namespace KILN_NAMESPACE {

constexpr int PANEL = 2 * VL;  // channels of a panel; the triangle is made of PANEL x PANEL blocks
constexpr int DEPTH = 128;     // pixels summed in registers, at most: two panels of DEPTH pixels fit in L1

// Dense features, NHWC or (planar) NCHW.
struct Features {
    Dtype dtype;
    int64_t pixels;  // of one image
    int channels;
    bool planar;
    const void* data;

    int panels() const { return (channels + PANEL - 1) / PANEL; }
    int extent(int panel) const { return channels - panel * PANEL < PANEL ? channels - panel * PANEL : PANEL; }
    int64_t at(int64_t image, int64_t pixel, int channel) const {
        return image * pixels * channels + (planar ? channel * pixels + pixel : pixel * channels + channel);
    }
};

// The blocks (m, n), m <= n, of an upper triangle one after another, each PANEL x PANEL. Rows and columns past the last
// channel, and the lower left quarter of a diagonal block, are never written.
struct Triangle {
    int channels;
    float* data;

    int panels() const { return (channels + PANEL - 1) / PANEL; }
    int64_t size() const { return int64_t(panels()) * (panels() + 1) / 2 * PANEL * PANEL; }
    float* block(int m, int n) const { return data + (int64_t(n) * (n + 1) / 2 + m) * PANEL * PANEL; }
    int extent(int panel) const { return channels - panel * PANEL < PANEL ? channels - panel * PANEL : PANEL; }
};

typedef float v4 __attribute__((vector_size(16)));
typedef float v4_any __attribute__((vector_size(16), aligned(4), may_alias));

// to[c][r] = from[r][c]
static void transpose(const float* from, int64_t from_row, int rows, int columns, float* to, int64_t to_row) {
    const int whole_rows = rows / 4 * 4, whole_columns = columns / 4 * 4;
    for (int c = 0; c < whole_columns; c += 4)
        for (int r = 0; r < whole_rows; r += 4) {
            v4 x[4];
            for (int i = 0; i < 4; ++i) x[i] = *reinterpret_cast<const v4_any*>(from + (r + i) * from_row + c);
            const v4 a = {x[0][0], x[1][0], x[0][1], x[1][1]}, b = {x[2][0], x[3][0], x[2][1], x[3][1]};
            const v4 d = {x[0][2], x[1][2], x[0][3], x[1][3]}, e = {x[2][2], x[3][2], x[2][3], x[3][3]};
            const v4 y[4] = {{a[0], a[1], b[0], b[1]}, {a[2], a[3], b[2], b[3]},
                             {d[0], d[1], e[0], e[1]}, {d[2], d[3], e[2], e[3]}};
            for (int i = 0; i < 4; ++i) *reinterpret_cast<v4_any*>(to + (c + i) * to_row + r) = y[i];
        }
    for (int c = 0; c < columns; ++c)
        for (int r = c < whole_columns ? whole_rows : 0; r < rows; ++r) to[c * to_row + r] = from[r * from_row + c];
}

// Copies n elements from `index` on as float32.
static void convert(Dtype dtype, const void* from, int64_t index, int64_t n, float* to) {
    int64_t i = 0;
    for (; i + VL <= n; i += VL) store(to + i, load_as(dtype, from, index + i));
    if (i < n) store_part(F32, to, i, load_part(dtype, from, index + i, int(n - i)), int(n - i));
}

// Copies pixels [k, k + depth) of an image as float32, [panel][pixel][PANEL], with zeros after the last channel.
static void pack_pixels(const Features& f, int64_t image, int64_t k, int depth, float* out) {
    const int64_t panel = int64_t(depth) * PANEL;
    const int whole = f.channels / PANEL, panels = f.panels();
    if (panels > whole) std::memset(out + whole * panel, 0, sizeof(float) * panel);
    if (!f.planar) {
        int64_t from = f.at(image, k, 0);
        for (int i = 0; i < depth; ++i, out += PANEL, from += f.channels) {
            for (int p = 0; p < whole; ++p)
                for (int c = 0; c < PANEL; c += VL)
                    store(out + p * panel + c, load_as(f.dtype, f.data, from + p * PANEL + c));
            if (panels > whole) convert(f.dtype, f.data, from + whole * PANEL, f.extent(whole), out + whole * panel);
        }
        return;
    }
    for (int p = 0; p < panels; ++p, out += panel) {
        const int64_t first = f.at(image, k, p * PANEL);
        const float* rows = static_cast<const float*>(f.data) + first;
        if (f.dtype != F32) {
            float* converted = scratch(Slot::CONVERTED, PANEL * DEPTH);
            for (int c = 0; c < f.extent(p); ++c)
                convert(f.dtype, f.data, first + c * f.pixels, depth, converted + c * DEPTH);
            rows = converted;
        }
        transpose(rows, f.dtype == F32 ? f.pixels : DEPTH, f.extent(p), depth, out, PANEL);
    }
}

// sums = F^T F over pixels [k0, k1) of one image, upper triangle; with `accumulate` the products are added to sums.
static void add_products(const Features& f, int64_t image, int64_t k0, int64_t k1, const Triangle& sums, bool accumulate) {
    const int panels = f.panels();
    // few channels and pixels: shorter sums, which round as little as eager PyTorch's there
    const int most = f.channels <= 4 && k1 - k0 <= 256 ? 32 : DEPTH;
    float* packed = scratch(Slot::PACKED_PIXELS, int64_t(panels) * DEPTH * PANEL);
    for (int64_t k = k0; k < k1; k += most, accumulate = true) {
        const int depth = k1 - k < most ? int(k1 - k) : most;
        pack_pixels(f, image, k, depth, packed);
        Product p{};
        p.a_row = 1;
        p.a_step = p.b_step = p.c_row = PANEL;
        p.segments = 1;
        p.depth = depth;
        p.accumulate = accumulate;
        for (int n = 0; n < panels; ++n) {
            const int width = sums.extent(n) > VL ? PANEL : VL;
            p.b = packed + int64_t(n) * depth * PANEL;
            for (int m = 0; m < n; ++m) {
                p.a = packed + int64_t(m) * depth * PANEL;
                p.c = sums.block(m, n);
                multiply_panel(p, PANEL, width);
            }
            // in a diagonal block the second half of the rows needs the second half of the columns only
            const int rows = sums.extent(n);
            p.a = p.b;
            p.c = sums.block(n, n);
            multiply_panel(p, rows < VL ? rows : VL, width);
            if (rows > VL) {
                p.a += VL;
                p.b += VL;
                p.c += VL * PANEL + VL;
                multiply_panel(p, rows - VL, VL);
            }
        }
    }
}

// Into how many parts, at most `most`, each image is cut, so that all threads have equally much to do.
static inline int64_t splits_of(int64_t batch, int64_t most) {
    const int threads = wanted_threads();
    return batch % threads == 0 || batch >= 4 * threads ? 1 : threads < most ? threads : most;
}

// Calls finish(image, triangle) for each image, with the triangle of A^T A, or of A^T A - B^T B where b is not null.
// The same number of wanted threads gives the same sums.
template <class Finish>
static void for_each_gram(const Features& a, const Features* b, int64_t batch, Finish finish) {
    const int64_t splits = splits_of(batch, a.pixels);
    const int64_t size = Triangle{a.channels, nullptr}.size();
    float* shared = splits > 1 ? scratch(Slot::SPLIT_SUMS, batch * splits * size) : nullptr;

    for_parts(batch * splits, [&](int64_t unit) {
        const int64_t image = unit / splits, part = unit % splits;
        const int64_t k0 = a.pixels * part / splits, k1 = a.pixels * (part + 1) / splits;
        const Triangle sums{a.channels, shared ? shared + unit * size : scratch(Slot::TRIANGLE, size)};
        if (b) {
            add_products(*b, image, k0, k1, sums, false);
            for (int64_t i = 0; i < size; i += VL) store(sums.data + i, -load(sums.data + i));
        }
        add_products(a, image, k0, k1, sums, b != nullptr);
        if (!shared) finish(image, sums);
    });
    if (!shared) return;
    for_parts(batch, [&](int64_t image) {
        const Triangle sums{a.channels, shared + image * splits * size};
        for (int64_t part = 1; part < splits; ++part)
            for (int64_t i = 0; i < size; i += VL)
                store(sums.data + i, load(sums.data + i) + load(sums.data + part * size + i));
        finish(image, sums);
    });
}

// Writes both halves of the symmetric matrix, times `scale`, as (channels, channels).
static void write_symmetric(const Triangle& sums, float scale, float* out) {
    const int64_t channels = sums.channels;
    for (int n = 0; n < sums.panels(); ++n)
        for (int m = 0; m <= n; ++m) {
            const float* block = sums.block(m, n);
            const int rows = sums.extent(m), columns = sums.extent(n);
            float *upper = out + m * PANEL * channels + n * PANEL, *lower = out + n * PANEL * channels + m * PANEL;
            for (int i = 0; i < rows; ++i)
                for (int j = m == n ? i : 0; j < columns; ++j) upper[i * channels + j] = block[i * PANEL + j] * scale;
            if (m < n) {
                transpose(upper, channels, rows, columns, lower, channels);
                continue;
            }
            for (int j = 1; j < columns; ++j)
                for (int i = 0; i < j; ++i) lower[j * channels + i] = upper[i * channels + j];
        }
}

// Writes columns [n0, n0 + columns) of (S + S^T) * scale of one image as rows of `to`, zeros after them. With
// `symmetric` S is its own transpose and is taken twice.
static void pack_symmetric(const float* s, int channels, bool symmetric, float scale, int n0, int columns, float* to,
                           int to_row) {
    if (!symmetric) transpose(s + int64_t(n0) * channels, channels, columns, channels, to, to_row);
    for (int k = 0; k < channels; ++k, to += to_row) {
        const float* row = s + int64_t(k) * channels + n0;
        for (int j = 0; j < columns; ++j) to[j] = scale * (row[j] + (symmetric ? row[j] : to[j]));
        for (int j = columns; j < to_row; ++j) to[j] = 0.0f;
    }
}

// Multiplies one panel of the gradient: `rows` rows (pixels, or channels of planar features) times `channels` depth
// times `width` columns.
static void multiply_channels(Product p, int channels, int rows, int width) {
    constexpr int MOST = 512;
    p.a_step = 1;
    p.b_step = PANEL;
    p.segments = 1;
    for (int k = 0; k < channels; k += MOST, p.a += MOST, p.b += MOST * PANEL) {
        p.depth = channels - k < MOST ? channels - k : MOST;
        p.accumulate = k > 0;
        multiply_panel(p, rows, width);
    }
}

// Stores a tile of PANEL columns as rows of `columns` elements, `row` apart, from index `first` of `result` on.
static void put_tile(Dtype dtype, const float* tile, int rows, int columns, void* result, int64_t first, int64_t row) {
    for (int r = 0; r < rows; ++r)
        for (int c = 0; c < columns; c += VL) {
            const vf v = load(tile + r * PANEL + c);
            if (columns - c >= VL) store_as(dtype, result, first + r * row + c, v);
            else store_part(dtype, result, first + r * row + c, v, columns - c);
        }
}

// Writes pixels [first, first + count) of F (S + S^T) of one image of NHWC features, the matrix packed
// [panel][k][PANEL].
static void pixel_gradient(const Features& f, int64_t image, int64_t first, int count, const float* packed, void* result) {
    const float* rows = static_cast<const float*>(f.data) + f.at(image, first, 0);
    if (f.dtype != F32) {
        float* converted = scratch(Slot::CONVERTED, int64_t(count) * f.channels);
        convert(f.dtype, f.data, f.at(image, first, 0), int64_t(count) * f.channels, converted);
        rows = converted;
    }
    float* tile = scratch(Slot::GRADIENT_TILE, count * PANEL);
    for (int n = 0; n < f.panels(); ++n) {
        const int columns = f.extent(n), width = columns > VL ? PANEL : VL;
        const int64_t at = f.at(image, first, n * PANEL);
        const bool in_place = f.dtype == F32 && columns == width;
        Product p{};
        p.a = rows;
        p.a_row = f.channels;
        p.b = packed + int64_t(n) * f.channels * PANEL;
        p.c = in_place ? static_cast<float*>(result) + at : tile;
        p.c_row = in_place ? f.channels : PANEL;
        multiply_channels(p, f.channels, count, width);
        if (!in_place) put_tile(f.dtype, tile, count, columns, result, at, f.channels);
    }
}

// Writes pixels [first, first + count) of (S + S^T) F of one image of planar features, the matrix packed row by row;
// count is at most PANEL.
static void planar_gradient(const Features& f, int64_t image, int64_t first, int count, const float* packed, void* result) {
    const int width = count > VL ? PANEL : VL;
    const int64_t at = f.at(image, first, 0);
    const bool in_place = f.dtype == F32 && count == width;
    float* panel = scratch(Slot::CONVERTED, int64_t(f.channels) * PANEL);
    float* tile = scratch(Slot::GRADIENT_TILE, int64_t(f.channels) * PANEL);
    if (count < PANEL) std::memset(panel, 0, sizeof(float) * f.channels * PANEL);
    for (int k = 0; k < f.channels; ++k) convert(f.dtype, f.data, at + k * f.pixels, count, panel + k * PANEL);
    Product p{};
    p.a = packed;
    p.a_row = f.channels;
    p.b = panel;
    p.c = in_place ? static_cast<float*>(result) + at : tile;
    p.c_row = in_place ? f.pixels : PANEL;
    multiply_channels(p, f.channels, f.channels, width);
    if (!in_place) put_tile(f.dtype, tile, f.channels, count, result, at, f.pixels);
}

// Writes the features' gradient: S + S^T times the features times factor(image), where the upstream gradient S is
// `matrices` (batch, channels, channels).
template <class Factor>
static void gram_gradient(const Features& f, int64_t batch, const float* matrices, bool symmetric, Factor factor,
                          void* result) {
    const int64_t at_once = f.planar ? PANEL : 8 * MR, blocks = (f.pixels + at_once - 1) / at_once;
    const int64_t splits = splits_of(batch, blocks);

    for_parts(batch * splits, [&](int64_t unit) {
        const int64_t image = unit / splits, part = unit % splits;
        const float* s = matrices + image * f.channels * f.channels;
        const float scale = factor(image);
        float* packed = scratch(Slot::PACKED_MATRIX, int64_t(f.panels()) * f.channels * PANEL);
        if (f.planar)
            pack_symmetric(s, f.channels, symmetric, scale, 0, f.channels, packed, f.channels);
        else
            for (int n = 0; n < f.panels(); ++n)
                pack_symmetric(s, f.channels, symmetric, scale, n * PANEL, f.extent(n),
                               packed + int64_t(n) * f.channels * PANEL, PANEL);
        for (int64_t block = blocks * part / splits; block < blocks * (part + 1) / splits; ++block) {
            const int64_t first = block * at_once, left = f.pixels - first;
            (f.planar ? planar_gradient : pixel_gradient)(f, image, first, int(left < at_once ? left : at_once), packed,
                                                          result);
        }
    });
}

}  // namespace KILN_NAMESPACE
}  // namespace kiln
