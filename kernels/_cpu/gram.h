// Gram matrices of NHWC features, only their upper triangle computed, and the product that is their backward.
#pragma once
#include <omp.h>

#include "gemm.h"

namespace kiln {
namespace KILN_NAMESPACE {

constexpr int PANEL = 2 * VL;  // channels of a panel; the triangle is made of PANEL x PANEL blocks
constexpr int DEPTH = 128;     // pixels summed in registers: two panels of so many lie in L1

// Dense NHWC features.
struct Features {
    Dtype dtype;
    int64_t pixels;  // of one image
    int channels;
    const void* data;

    int panels() const { return (channels + PANEL - 1) / PANEL; }
    int64_t image(int64_t i) const { return i * pixels * channels; }
};

// The blocks (m, n), m <= n, of an upper triangle one after another, each PANEL x PANEL. Rows and columns past the last
// channel, and what lies left of the second half of a diagonal block, are never written.
struct Triangle {
    int channels;
    float* data;

    int panels() const { return (channels + PANEL - 1) / PANEL; }
    int64_t size() const { return int64_t(panels()) * (panels() + 1) / 2 * PANEL * PANEL; }
    float* block(int m, int n) const { return data + (int64_t(n) * (n + 1) / 2 + m) * PANEL * PANEL; }
    int extent(int panel) const { return channels - panel * PANEL < PANEL ? channels - panel * PANEL : PANEL; }
};

// Pixels [k, k + depth) as float32, [panel][pixel][PANEL], with zeros after the last channel.
static void pack_pixels(const Features& f, int64_t first, int depth, float* out) {
    const int panels = f.panels();
    for (int k = 0; k < depth; ++k, first += f.channels)
        for (int p = 0; p < panels; ++p) {
            float* to = out + (int64_t(p) * depth + k) * PANEL;
            for (int c = 0; c < PANEL; c += VL) {
                const int at = p * PANEL + c, left = f.channels - at;
                store(to + c, left >= VL ? load_as(f.dtype, f.data, first + at)
                                         : left > 0 ? load_part(f.dtype, f.data, first + at, left) : splat(0.0f));
            }
        }
}

// sums (+)= F^T F over pixels [k0, k1) of one image, upper triangle.
static void add_products(const Features& f, int64_t image, int64_t k0, int64_t k1, const Triangle& sums, bool accumulate) {
    const int panels = f.panels();
    float* packed = scratch(2, int64_t(panels) * DEPTH * PANEL);
    for (int64_t k = k0; k < k1; k += DEPTH, accumulate = true) {
        const int depth = k1 - k < DEPTH ? int(k1 - k) : DEPTH;
        pack_pixels(f, f.image(image) + k * f.channels, depth, packed);
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
            // on the diagonal the second half of the rows needs the second half of the columns only
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

// For each image finish(image, triangle of F^T F), or of the difference to the second features where there are some.
// The same thread count gives the same sums.
template <class Finish>
static void for_each_gram(const Features& a, const Features* b, int64_t batch, Finish finish) {
    const int threads = omp_get_max_threads();
    const bool enough = batch % threads == 0 || batch >= 4 * threads;
    const int64_t splits = enough ? 1 : threads < a.pixels ? threads : a.pixels;
    const int64_t size = Triangle{a.channels, nullptr}.size();
    float* shared = splits > 1 ? scratch(0, batch * splits * size) : nullptr;

#pragma omp parallel for schedule(static)
    for (int64_t unit = 0; unit < batch * splits; ++unit) {
        const int64_t image = unit / splits, part = unit % splits;
        const int64_t k0 = a.pixels * part / splits, k1 = a.pixels * (part + 1) / splits;
        const Triangle sums{a.channels, shared ? shared + unit * size : scratch(1, size)};
        if (b) {
            add_products(*b, image, k0, k1, sums, false);
            for (int64_t i = 0; i < size; i += VL) store(sums.data + i, -load(sums.data + i));
        }
        add_products(a, image, k0, k1, sums, b != nullptr);
        if (!shared) finish(image, sums);
    }
    if (!shared) return;
#pragma omp parallel for schedule(static)
    for (int64_t image = 0; image < batch; ++image) {
        const Triangle sums{a.channels, shared + image * splits * size};
        for (int64_t part = 1; part < splits; ++part)
            for (int64_t i = 0; i < size; i += VL)
                store(sums.data + i, load(sums.data + i) + load(sums.data + part * size + i));
        finish(image, sums);
    }
}

// Both halves of the symmetric matrix, times `scale`, as (channels, channels).
static void write_symmetric(const Triangle& sums, float scale, float* out) {
    const int64_t channels = sums.channels;
    for (int n = 0; n < sums.panels(); ++n)
        for (int m = 0; m <= n; ++m) {
            const float* block = sums.block(m, n);
            const int rows = sums.extent(m), columns = sums.extent(n);
            for (int i = 0; i < rows; ++i)
                for (int j = m == n ? i : 0; j < columns; ++j)
                    out[(m * PANEL + i) * channels + n * PANEL + j] = block[i * PANEL + j] * scale;
            for (int j = 0; j < columns; ++j)
                for (int i = 0; i < (m == n ? j : rows); ++i)
                    out[(n * PANEL + j) * channels + m * PANEL + i] = block[i * PANEL + j] * scale;
        }
}

// result = (S + S^T) F * factor(image), the gradient of the features under upstream S (batch, channels, channels).
template <class Factor>
static void gram_gradient(const Features& f, int64_t batch, const float* matrices, bool symmetric, Factor factor,
                          void* result) {
    const int threads = omp_get_max_threads(), panels = f.panels(), channels = f.channels;
    const int64_t rows_at_once = 8 * MR, blocks = (f.pixels + rows_at_once - 1) / rows_at_once;
    const bool enough = batch % threads == 0 || batch >= 4 * threads;
    const int64_t splits = enough ? 1 : threads < blocks ? threads : blocks;

#pragma omp parallel for schedule(static)
    for (int64_t unit = 0; unit < batch * splits; ++unit) {
        const int64_t image = unit / splits, part = unit % splits;
        const float* s = matrices + image * channels * channels;
        const float scale = factor(image);
        // [panel][k][PANEL]
        float* packed = scratch(2, int64_t(panels) * channels * PANEL);
        for (int n = 0; n < panels; ++n)
            for (int k = 0; k < channels; ++k) {
                float* to = packed + (int64_t(n) * channels + k) * PANEL;
                const int columns = channels - n * PANEL < PANEL ? channels - n * PANEL : PANEL;
                const float* row = s + int64_t(k) * channels + n * PANEL;
                for (int j = 0; j < columns; ++j)
                    to[j] = scale * (row[j] + (symmetric ? row[j] : s[int64_t(n * PANEL + j) * channels + k]));
                for (int j = columns; j < PANEL; ++j) to[j] = 0.0f;
            }
        float* converted = f.dtype == F32 ? nullptr : scratch(3, rows_at_once * channels + VL);
        float* tile = scratch(4, rows_at_once * PANEL);
        for (int64_t block = blocks * part / splits; block < blocks * (part + 1) / splits; ++block) {
            const int64_t pixel = block * rows_at_once, left = f.pixels - pixel;
            const int rows = int(left < rows_at_once ? left : rows_at_once);
            const int64_t first = f.image(image) + pixel * channels, count = int64_t(rows) * channels;
            if (converted)
                for (int64_t i = 0; i < count; i += VL)
                    store(converted + i, i + VL <= count ? load_as(f.dtype, f.data, first + i)
                                                         : load_part(f.dtype, f.data, first + i, int(count - i)));
            for (int n = 0; n < panels; ++n) {
                const int columns = channels - n * PANEL < PANEL ? channels - n * PANEL : PANEL;
                const int width = columns > VL ? PANEL : VL;
                const bool in_place = f.dtype == F32 && columns == width;
                Product p{};
                p.a_row = channels;
                p.a_step = 1;
                p.b_step = PANEL;
                p.segments = 1;
                p.c = in_place ? static_cast<float*>(result) + first + n * PANEL : tile;
                p.c_row = in_place ? channels : PANEL;
                for (int k = 0; k < channels; k += 2 * DEPTH) {
                    p.a = (converted ? converted : static_cast<const float*>(f.data) + first) + k;
                    p.b = packed + (int64_t(n) * channels + k) * PANEL;
                    p.depth = channels - k < 2 * DEPTH ? channels - k : 2 * DEPTH;
                    p.accumulate = k > 0;
                    multiply_panel(p, rows, width);
                }
                if (in_place) continue;
                for (int r = 0; r < rows; ++r)
                    for (int c = 0; c < columns; c += VL) {
                        const int64_t at = first + int64_t(r) * channels + n * PANEL + c;
                        const vf v = load(tile + r * PANEL + c);
                        if (columns - c >= VL) store_as(f.dtype, result, at, v);
                        else store_part(f.dtype, result, at, v, columns - c);
                    }
            }
        }
    }
}

}  // namespace KILN_NAMESPACE
}  // namespace kiln
