// Convolution as a sum of shifted products: every 3x3 pass, resized or not, is a table of taps.
#pragma once
#include "gemm.h"
#include "thin.h"

namespace kiln {
namespace KILN_NAMESPACE {

// One tap along one axis: reads the input at `offset` with the combination g of the three kernel taps.
struct Tap {
    int offset;
    float g[3];
};

// One axis of a pass: output o = step_out * i + phase reads inputs step_in * i + offset. Two axes are the outer product.
struct Stencil {
    int step_in, step_out;
    int count[2];
    Tap taps[2][4];

    int lowest() const { return extreme(-1); }
    int highest() const { return extreme(1); }
    int cells(int outputs) const { return (outputs + step_out - 1) / step_out; }
    int products() const { return (count[0] + count[1]) * (count[0] + count[1]); }

private:
    int extreme(int sign) const {
        int best = taps[0][0].offset;
        for (int phase = 0; phase < step_out; ++phase)
            for (int t = 0; t < count[phase]; ++t)
                if (sign * taps[phase][t].offset > sign * best) best = taps[phase][t].offset;
        return best;
    }
};

constexpr Stencil SAME = {1, 1, {3, 0}, {{{-1, {1, 0, 0}}, {0, {0, 1, 0}}, {1, {0, 0, 1}}}}};
constexpr Stencil SAME_ADJOINT = {1, 1, {3, 0}, {{{1, {1, 0, 0}}, {0, {0, 1, 0}}, {-1, {0, 0, 1}}}}};
constexpr Stencil DOWN = {2, 1, {3, 0}, {{{-1, {1, 0, 0}}, {0, {0, 1, 0}}, {1, {0, 0, 1}}}}};
constexpr Stencil DOWN_ADJOINT = {1, 2, {1, 2}, {{{0, {0, 1, 0}}}, {{0, {0, 0, 1}}, {1, {1, 0, 0}}}}};
constexpr Stencil UP = {1, 2, {2, 2}, {{{-1, {1, 0, 0}}, {0, {0, 1, 1}}}, {{0, {1, 1, 0}}, {1, {0, 0, 1}}}}};
constexpr Stencil UP_ADJOINT = {2, 1, {4, 0}, {{{-1, {0, 0, 1}}, {0, {0, 1, 1}}, {1, {1, 1, 0}}, {2, {1, 0, 0}}}}};

// A weight tensor (cout, cin, 3, 3), float32 contiguous, seen as depth x columns for one pass over channels
// [first, first + count) of its input axis.
struct Weights {
    const float* data;
    int cout, cin, first, count;
    bool adjoint;  // depth is the output channels, columns the input channels

    int depth() const { return adjoint ? cout : count; }
    int columns() const { return adjoint ? count : cout; }
    int padded() const { return round_up(columns(), VL); }
    bool thin() const { return columns() <= THIN; }
    const float* kernel(int k, int n) const {
        return data + (adjoint ? int64_t(k) * cin + first + n : int64_t(n) * cin + first + k) * 9;
    }
};

// The rows of kernel g combined to one line of three.
static inline void combine_rows(const float* g, const float* row, float* line) {
    for (int q = 0; q < 3; ++q) line[q] = row[0] * g[q] + row[1] * g[3 + q] + row[2] * g[6 + q];
}

static inline float dot3(const float* a, const float* b) { return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]; }

// For thin passes: [r][c][column n][depth padded to whole vectors].
static void pack_thin(const Weights& w, const float (*row)[3], int rows, const float (*column)[3], int columns,
                      float* out) {
    const int depth = w.depth(), padded = round_up(depth, VL);
    for (int r = 0; r < rows; ++r)
        for (int c = 0; c < columns; ++c)
            for (int n = 0; n < w.columns(); ++n, out += padded)
                for (int k = 0; k < padded; ++k) {
                    float line[3] = {};
                    if (k < depth) combine_rows(w.kernel(k, n), row[r], line);
                    out[k] = dot3(line, column[c]);
                }
}

// Packs combinations row[r] x column[c] of the kernel, panel by panel: [panel][r][c][depth][panel width].
static void pack(const Weights& w, const float (*row)[3], int rows, const float (*column)[3], int columns, float* out) {
    const int depth = w.depth(), padded = w.padded(), n_columns = w.columns();
#pragma omp parallel for schedule(static)
    for (int k = 0; k < depth; ++k) {
        for (int n0 = 0; n0 < padded;) {
            const int width = panel_width(n0, padded);
            float* panel = out + (int64_t(n0) * rows * columns) * depth + int64_t(k) * width;
            for (int n = n0; n < n0 + width; ++n) {
                const float* g = n < n_columns ? w.kernel(k, n) : nullptr;
                for (int r = 0; r < rows; ++r) {
                    float line[3] = {};
                    if (g) combine_rows(g, row[r], line);
                    for (int c = 0; c < columns; ++c)
                        panel[(int64_t(r) * columns + c) * depth * width + (n - n0)] = dot3(line, column[c]);
                }
            }
            n0 += width;
        }
    }
}

static int64_t packed_floats(const Weights& w, int products) {
    return int64_t(products) * (w.thin() ? w.columns() * round_up(w.depth(), VL) : w.depth() * w.padded());
}

// All phases of a stencil, one after another.
static void pack_stencil(const Weights& w, const Stencil& s, float* out) {
    for (int pr = 0; pr < s.step_out; ++pr)
        for (int pc = 0; pc < s.step_out; ++pc) {
            float row[4][3], column[4][3];
            for (int t = 0; t < s.count[pr]; ++t) std::memcpy(row[t], s.taps[pr][t].g, sizeof row[t]);
            for (int t = 0; t < s.count[pc]; ++t) std::memcpy(column[t], s.taps[pc][t].g, sizeof column[t]);
            (w.thin() ? pack_thin : pack)(w, row, s.count[pr], column, s.count[pc], out);
            out += packed_floats(w, s.count[pr] * s.count[pc]);
        }
}

// The step_out output rows of cell row i into `rows` (float32, step_out x cells * step_out x padded columns).
static void direct_rows(const Stencil& s, const Band& in, const Weights& w, const float* packed, int i, int cells,
                        float* rows, bool accumulate) {
    const int depth = w.depth(), padded = w.padded();
    for (int pr = 0; pr < s.step_out; ++pr)
        for (int pc = 0; pc < s.step_out; ++pc) {
            int64_t a_segment[16], b_offset[16], b_segment[16];
            int taps = 0;
            for (int r = 0; r < s.count[pr]; ++r)
                for (int c = 0; c < s.count[pc]; ++c, ++taps) {
                    a_segment[taps] = in.at(i * s.step_in + s.taps[pr][r].offset, s.taps[pc][c].offset) - in.data;
                    b_offset[taps] = int64_t(taps) * depth;
                }
            float* to = rows + (int64_t(pr) * cells * s.step_out + pc) * padded;
            if (w.thin())
                thin_row_of(w.columns())(in.data, int64_t(s.step_in) * in.channels, a_segment, taps, in.channels, packed, to,
                                         int64_t(s.step_out) * padded, cells, accumulate);
            for (int n0 = 0; n0 < padded && !w.thin();) {
                const int width = panel_width(n0, padded);
                for (int t = 0; t < taps; ++t) b_segment[t] = b_offset[t] * width;
                Product p{};
                p.a = in.data;
                p.a_row = int64_t(s.step_in) * in.channels;
                p.a_step = 1;
                p.b = packed + int64_t(n0) * taps * depth;
                p.b_step = width;
                p.segments = taps;
                p.a_segment = a_segment;
                p.b_segment = b_segment;
                p.depth = depth;
                p.c = to + n0;
                p.c_row = int64_t(s.step_out) * padded;
                p.accumulate = accumulate;
                multiply_panel(p, cells, width);
                n0 += width;
            }
            packed += packed_floats(w, taps);
        }
}

// Stores one float32 row of `columns` pixels as output row `row` of one image.
static void put_row(const Sink& sink, int image, int row, const float* from, int padded) {
    if (row >= sink.height) return;
    const int64_t pixel0 = (int64_t(image) * sink.height + row) * sink.width;
    for (int column = 0; column < sink.width; ++column)
        for (int c = 0; c < padded; c += VL) sink.put(pixel0 + column, c, load(from + int64_t(column) * padded + c));
}

// Where the sums of a weight gradient lie: [tap][cin][padded cout], or [tap][cout][padded cin] where cout is thin, so
// that the vectors always run along the wider of the two.
struct Sums {
    int cin, cout;
    bool by_output() const { return cout > THIN || cin <= cout; }
    int rows() const { return by_output() ? cin : cout; }
    int columns() const { return round_up(by_output() ? cout : cin, VL); }
    int64_t size(int taps) const { return int64_t(taps) * rows() * columns(); }
    int64_t at(int tap, int i, int o) const {
        return (int64_t(tap) * rows() + (by_output() ? i : o)) * columns() + (by_output() ? o : i);
    }
};

// Weight gradient of cell rows [i0, i1): sums += input taps x gradient taps. The taps move the input where the pass
// reads with offsets (SAME, DOWN), or the gradient where that is the larger one (UP_ADJOINT).
static void direct_weight_gradient(const Stencil& s, bool taps_on_gradient, const Band& in, const Sums& layout,
                                   const Band& gradient, int i0, int i1, int cells, float* sums) {
    const int in_step = taps_on_gradient ? 1 : s.step_in, gradient_step = taps_on_gradient ? s.step_in : 1;
    int64_t* segments = reinterpret_cast<int64_t*>(scratch(6, int64_t(i1 - i0) * 4));
    int64_t* in_segment = segments;
    int64_t* gradient_segment = segments + (i1 - i0);
    for (int i = 0; i < i1 - i0; ++i) {
        in_segment[i] = int64_t(i) * in_step * in.columns * in.channels;
        gradient_segment[i] = int64_t(i) * gradient_step * gradient.columns * gradient.channels;
    }
    const bool by_output = layout.by_output();
    Product p{};
    p.a_row = 1;
    p.a_step = by_output ? int64_t(in_step) * in.channels : int64_t(gradient_step) * gradient.channels;
    p.b_step = by_output ? int64_t(gradient_step) * gradient.channels : int64_t(in_step) * in.channels;
    p.segments = i1 - i0;
    p.a_segment = by_output ? in_segment : gradient_segment;
    p.b_segment = by_output ? gradient_segment : in_segment;
    p.depth = cells;
    p.c_row = layout.columns();
    p.accumulate = true;
    for (int r = 0; r < s.count[0]; ++r)
        for (int c = 0; c < s.count[0]; ++c, sums += layout.size(1)) {
            const int dr = s.taps[0][r].offset, dc = s.taps[0][c].offset;
            const float* x = taps_on_gradient ? in.at(i0, 0) : in.at(i0 * in_step + dr, dc);
            const float* g = taps_on_gradient ? gradient.at(i0 * gradient_step + dr, dc) : gradient.at(i0, 0);
            p.a = by_output ? x : g;
            p.b = by_output ? g : x;
            p.c = sums;
            multiply(p, layout.rows(), layout.columns());
        }
}

// dw[cout][cin][p][q] = sum over r, c of taps[r][p] taps[c][q] sums[r][c][cin][cout], for input channels from `first`.
static void unpack_gradient(const float* sums, const Sums& layout, const float (*taps)[3], int n, int first, int cin_all,
                            float* dw) {
#pragma omp parallel for schedule(static)
    for (int o = 0; o < layout.cout; ++o)
        for (int i = 0; i < layout.cin; ++i) {
            float sum[9] = {};
            for (int r = 0; r < n; ++r) {
                float line[3] = {};
                for (int c = 0; c < n; ++c) {
                    const float value = sums[layout.at(r * n + c, i, o)];
                    for (int q = 0; q < 3; ++q) line[q] += taps[c][q] * value;
                }
                for (int p = 0; p < 3; ++p)
                    for (int q = 0; q < 3; ++q) sum[p * 3 + q] += taps[r][p] * line[q];
            }
            std::memcpy(dw + (int64_t(o) * cin_all + first + i) * 9, sum, sizeof sum);
        }
}

}  // namespace KILN_NAMESPACE
}  // namespace kiln
