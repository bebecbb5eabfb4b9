// Convolution as a sum of shifted products: a table of taps describes every 3x3 pass, resized or not.
#pragma once
#include "gemm.h"
#include "parallel.h"
#include "tensors.h"

namespace kiln {
namespace KILN_NAMESPACE {

constexpr int THIN = 4;  // most columns of a thin pass, whose output is an image: at most as many as a vector has lanes

typedef float v4_any __attribute__((vector_size(16), aligned(4), may_alias));

// One tap along one axis: multiplies the input at `offset` with the combination g of the three kernel taps.
struct Tap {
    int offset;
    float g[3];
};

// One axis of a pass: output o = step_out * i + phase reads inputs step_in * i + offset. A pass is the outer product of
// its two axes, which are alike. The offsets of a phase ascend by one.
struct Stencil {
    int step_in, step_out;
    int count[2];
    Tap taps[2][4];

    int lowest() const { return extreme(-1); }
    int highest() const { return extreme(1); }
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
constexpr Stencil SAME_ADJOINT = {1, 1, {3, 0}, {{{-1, {0, 0, 1}}, {0, {0, 1, 0}}, {1, {1, 0, 0}}}}};
constexpr Stencil DOWN = {2, 1, {3, 0}, {{{-1, {1, 0, 0}}, {0, {0, 1, 0}}, {1, {0, 0, 1}}}}};
constexpr Stencil DOWN_ADJOINT = {1, 2, {1, 2}, {{{0, {0, 1, 0}}}, {{0, {0, 0, 1}}, {1, {1, 0, 0}}}}};
constexpr Stencil UP = {1, 2, {2, 2}, {{{-1, {1, 0, 0}}, {0, {0, 1, 1}}}, {{0, {1, 1, 0}}, {1, {0, 0, 1}}}}};
constexpr Stencil UP_ADJOINT = {2, 1, {4, 0}, {{{-1, {0, 0, 1}}, {0, {0, 1, 1}}, {1, {1, 1, 0}}, {2, {1, 0, 0}}}}};

// A weight tensor (cout, cin, 3, 3), float32 contiguous, read as a matrix depth x columns by a pass that takes channels
// [first, first + count) of its input axis.
struct Weights {
    const float* data;
    int cout, cin, first, count;
    bool adjoint;  // the depth is the output channels and the columns are the input channels; else the other way round

    int depth() const { return adjoint ? cout : count; }
    int columns() const { return adjoint ? count : cout; }
    int padded() const { return round_up(columns(), VL); }
    bool thin() const { return columns() <= THIN; }
    const float* kernel(int k, int n) const {
        return data + (adjoint ? int64_t(k) * cin + first + n : int64_t(n) * cin + first + k) * 9;
    }
};

// Combines the three rows of a kernel by g to one line of three taps; T is float, or a vector with a kernel in each
// lane.
template <class T> static inline void combine_rows(const float* g, const T* kernel, T* line) {
    for (int q = 0; q < 3; ++q) line[q] = kernel[q] * g[0] + kernel[3 + q] * g[1] + kernel[6 + q] * g[2];
}

template <class T> static inline T dot3(const T* a, const float* b) { return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]; }

// Loads kernels (k, n) of VL columns n from n0 on, one vector for each tap; zeros past the last column.
static inline void load_kernels(const Weights& w, int k, int n0, vf* taps) {
    alignas(64) float lanes[9][VL] = {};
    const int n = w.columns() - n0 < VL ? w.columns() - n0 : VL;
    for (int lane = 0; lane < n; ++lane) {
        const float* kernel = w.kernel(k, n0 + lane);
        for (int t = 0; t < 9; ++t) lanes[t][lane] = kernel[t];
    }
    for (int t = 0; t < 9; ++t) taps[t] = load(lanes[t]);
}

// Packs combinations row[r] x column[c] of the kernel, panel by panel: [panel][r][c][depth][panel width].
static void pack(const Weights& w, const float (*row)[3], int rows, const float (*column)[3], int columns, float* out) {
    const int depth = w.depth(), padded = w.padded();
    // one vector of columns at a time: the kernels are read in the order they lie in
    for_parts(padded / VL, [&](int64_t vector) {
        const int n = int(vector) * VL;
        const int n0 = panel_start(n), width = panel_width(n0, padded);
        float* panel = out + int64_t(n0) * rows * columns * depth + (n - n0);
        for (int k = 0; k < depth; ++k) {
            vf kernel[9];
            load_kernels(w, k, n, kernel);
            for (int r = 0; r < rows; ++r) {
                vf line[3];
                combine_rows(row[r], kernel, line);
                for (int c = 0; c < columns; ++c)
                    store(panel + ((int64_t(r) * columns + c) * depth + k) * width, dot3(line, column[c]));
            }
        }
    });
}

// Floats that packed weights take. A thin pass has the columns (tap, n) of all its taps side by side as one matrix,
// padded to whole vectors.
static int64_t packed_floats(const Weights& w, int products) {
    return int64_t(w.depth()) * (w.thin() ? round_up(products * w.columns(), VL) : int64_t(products) * w.padded());
}

// Packs the weights of a thin pass panel by panel, [panel][depth][panel width]; the taps in the order phase, row,
// column.
static void pack_thin(const Weights& w, const Stencil& s, float* out) {
    const int depth = w.depth(), padded = round_up(s.products() * w.columns(), VL);
    std::memset(out, 0, sizeof(float) * depth * padded);
    int column = 0;
    for (int pr = 0; pr < s.step_out; ++pr)
        for (int pc = 0; pc < s.step_out; ++pc)
            for (int r = 0; r < s.count[pr]; ++r)
                for (int c = 0; c < s.count[pc]; ++c)
                    for (int n = 0; n < w.columns(); ++n, ++column) {
                        const int n0 = panel_start(column), width = panel_width(n0, padded);
                        for (int k = 0; k < depth; ++k) {
                            float line[3];
                            combine_rows(s.taps[pr][r].g, w.kernel(k, n), line);
                            out[int64_t(n0) * depth + int64_t(k) * width + (column - n0)] = dot3(line, s.taps[pc][c].g);
                        }
                    }
}

// Packs the weights of all phases of a stencil, one phase after another.
static void pack_stencil(const Weights& w, const Stencil& s, float* out) {
    if (w.thin()) return pack_thin(w, s, out);
    for (int pr = 0; pr < s.step_out; ++pr)
        for (int pc = 0; pc < s.step_out; ++pc) {
            float row[4][3], column[4][3];
            for (int t = 0; t < s.count[pr]; ++t) std::memcpy(row[t], s.taps[pr][t].g, sizeof row[t]);
            for (int t = 0; t < s.count[pc]; ++t) std::memcpy(column[t], s.taps[pc][t].g, sizeof column[t]);
            pack(w, row, s.count[pr], column, s.count[pc], out);
            out += packed_floats(w, s.count[pr] * s.count[pc]);
        }
}

// A thin pass over the cell rows of a band, in ascending order. A row of pixels is multiplied with all taps at once, so
// that the matrix is wide enough; a result is then the sum of one product from each pixel around it.
struct ThinRows {
    const Stencil& s;
    const Band& in;
    const Weights& w;
    const float* packed;
    int cells;
    int kept;         // rows whose products are held
    int left;         // first column of a row
    int columns;      // of a row
    int padded;       // products of a pixel, in whole vectors
    int next;         // first row that is not multiplied yet
    float* products;  // [row modulo kept][column][padded]

    ThinRows(const Stencil& s, const Band& in, const Weights& w, const float* packed, int cells)
        : s(s), in(in), w(w), packed(packed), cells(cells), kept(s.highest() - s.lowest() + 1), left(s.lowest()),
          columns((cells - 1) * s.step_in + kept), padded(round_up(s.products() * w.columns(), VL)), next(-(1 << 30)),
          products(scratch(Slot::THIN_PRODUCTS, int64_t(kept) * columns * padded + VL)) {}

    float* at(int row, int column) const {
        return products + (int64_t((row - s.lowest()) % kept) * columns + (column - left)) * padded;
    }

    void multiply_row(int row) {
        const int first = in.column0 > left ? in.column0 : left;
        const int end = in.column0 + in.columns, last = end < left + columns ? end : left + columns;
        if (!in.holds_row(row) || first >= last) {
            std::memset(at(row, left), 0, sizeof(float) * columns * padded);
            return;
        }
        std::memset(at(row, left), 0, sizeof(float) * (first - left) * padded);
        if (in.holds_row(row + 1)) {  // the next row comes from memory: ask for it while this one is multiplied
            const float* ahead = in.at(row + 1, first);
            for (int64_t at = 0; at < int64_t(last - first) * in.channels; at += 16) __builtin_prefetch(ahead + at, 0, 2);
        }
        for (int n0 = 0; n0 < padded;) {
            const int width = panel_width(n0, padded);
            Product p{};
            p.a = in.at(row, first);
            p.a_row = in.channels;
            p.a_step = 1;
            p.b = packed + int64_t(n0) * w.depth();
            p.b_step = width;
            p.segments = 1;
            p.depth = w.depth();
            p.c = at(row, first) + n0;
            p.c_row = padded;
            multiply_panel(p, last - first, width);
            n0 += width;
        }
        std::memset(at(row, left) + int64_t(last - left) * padded, 0, sizeof(float) * (left + columns - last) * padded);
    }

    // Writes the step_out output rows of cell row i to `rows`, as wide_rows does; of each pixel only the first four
    // floats.
    void row(int i, float* rows, bool accumulate) {
        const int end = i * s.step_in + s.highest() + 1;
        for (next = next > end - kept ? next : end - kept; next < end; ++next) multiply_row(next);
        int tap0 = 0;
        for (int pr = 0; pr < s.step_out; ++pr)
            for (int pc = 0; pc < s.step_out; ++pc) {
                const int across = s.count[pc], n = w.columns();
                const float* line[4];
                for (int r = 0; r < s.count[pr]; ++r)
                    line[r] = at(i * s.step_in + s.taps[pr][r].offset, s.taps[pc][0].offset) + (tap0 + r * across) * n;
                for (int j = 0; j < cells; ++j) {
                    float* to = rows + (int64_t(pr) * cells * s.step_out + j * s.step_out + pc) * w.padded();
                    v4_any sum = {};
                    for (int r = 0; r < s.count[pr]; ++r)
                        for (int c = 0; c < across; ++c)
                            sum += *reinterpret_cast<const v4_any*>(line[r] + int64_t(j * s.step_in + c) * padded + c * n);
                    if (accumulate) sum += *reinterpret_cast<const v4_any*>(to);
                    *reinterpret_cast<v4_any*>(to) = sum;
                }
                tap0 += s.count[pr] * across;
            }
    }
};

// Writes phase (pr, pc) of cell row i by matrix products; `to` is its first pixel, the next one lies to_step further.
static void wide_phase(const Stencil& s, int pr, int pc, const Band& in, const Weights& w, const float* packed, int i,
                       int cells, float* to, int64_t to_step, bool accumulate) {
    const int depth = w.depth(), padded = w.padded(), taps = s.count[pr] * s.count[pc];
    // where pixels lie dense, the taps of a row read one run of numbers
    const int run = in.channels == depth ? s.count[pc] : 1;
    int64_t a_segment[16], b_segment[16];
    int segments = 0;
    for (int r = 0; r < s.count[pr]; ++r)
        for (int c = 0; c < s.count[pc]; c += run)
            a_segment[segments++] = in.at(i * s.step_in + s.taps[pr][r].offset, s.taps[pc][c].offset) - in.data;
    for (int n0 = 0; n0 < padded;) {
        const int width = panel_width(n0, padded);
        for (int t = 0; t < segments; ++t) b_segment[t] = int64_t(t) * run * depth * width;
        Product p{};
        p.a = in.data;
        p.a_row = int64_t(s.step_in) * in.channels;
        p.a_step = 1;
        p.b = packed + int64_t(n0) * taps * depth;
        p.b_step = width;
        p.segments = segments;
        p.a_segment = a_segment;
        p.b_segment = b_segment;
        p.depth = run * depth;
        p.c = to + n0;
        p.c_row = to_step;
        p.accumulate = accumulate;
        multiply_panel(p, cells, width);
        n0 += width;
    }
}

// Writes the step_out output rows of cell row i to `rows`: float32, step_out x (cells * step_out) x padded columns.
static void wide_rows(const Stencil& s, const Band& in, const Weights& w, const float* packed, int i, int cells,
                      float* rows, bool accumulate) {
    const int64_t step = int64_t(s.step_out) * w.padded();
    for (int pr = 0; pr < s.step_out; ++pr)
        for (int pc = 0; pc < s.step_out; ++pc) {
            float* to = rows + (int64_t(pr) * cells * s.step_out + pc) * w.padded();
            wide_phase(s, pr, pc, in, w, packed, i, cells, to, step, accumulate);
            packed += packed_floats(w, s.count[pr] * s.count[pc]);
        }
}

// For cell rows i in [r0, r1) of one image of a band: writes the results to rows_of(i), or with `accumulate` adds them
// to what lies there, then calls done(i).
template <class RowsOf, class Done>
static void direct_rows(const Stencil& s, const Band& in, const Weights& w, const float* packed, int r0, int r1, int cells,
                        bool accumulate, RowsOf rows_of, Done done) {
    if (w.thin()) {
        ThinRows thin(s, in, w, packed, cells);
        for (int i = r0; i < r1; ++i) thin.row(i, rows_of(i), accumulate), done(i);
    } else {
        for (int i = r0; i < r1; ++i) wide_rows(s, in, w, packed, i, cells, rows_of(i), accumulate), done(i);
    }
}

// Stores one float32 row of padded pixels as output row `row` of one image; does nothing past the image's last row.
static void put_row(const Sink& sink, int64_t image, int row, const float* from, int padded) {
    if (row >= sink.height) return;
    const int64_t pixel0 = (image * sink.height + row) * sink.width;
    if (sink.channels <= THIN && sink.dtype == F32 && sink.activation == NONE && sink.data && !sink.channels2) {
        float* to = static_cast<float*>(sink.data) + pixel0 * sink.channels;
        for (int column = 0; column < sink.width; ++column, from += padded)
            for (int c = 0; c < sink.channels; ++c) *to++ = from[c] + (sink.bias ? sink.bias[c] : 0.0f);
        return;
    }
    with_put(sink, [&](auto put) {
        for (int column = 0; column < sink.width; ++column)
            for (int c = 0; c < padded; c += VL) put(pixel0 + column, c, load(from + int64_t(column) * padded + c));
    });
}

// Where the sums of a weight gradient lie: [tap][cin][padded cout], or [tap][cout][padded cin] where cout is thin, so
// that vectors run along the wider of the two axes.
struct Sums {
    int cin, cout;
    bool by_output() const { return cout > THIN || cin <= THIN; }
    int rows() const { return by_output() ? cin : cout; }
    int columns() const { return round_up(by_output() ? cout : cin, VL); }
    int64_t size(int taps) const { return int64_t(taps) * rows() * columns(); }
};

// Weight gradient of cell rows [i0, i1): sums += input x gradient, shifted against each other by each tap. The taps
// shift the input where the pass reads it with offsets (SAME, DOWN), or the gradient where that is the larger tensor
// (UP_ADJOINT).
static void direct_weight_gradient(const Stencil& s, bool taps_on_gradient, const Band& in, const Sums& layout,
                                   const Band& gradient, int i0, int i1, int cells, float* sums) {
    const int in_step = taps_on_gradient ? 1 : s.step_in, gradient_step = taps_on_gradient ? s.step_in : 1;
    int64_t* segments = reinterpret_cast<int64_t*>(scratch(Slot::SEGMENTS, int64_t(i1 - i0) * 4));
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
    // where the shifted tensor's pixels lie dense, the taps of a row are one run of rows of the product
    const Band& moved = taps_on_gradient ? gradient : in;
    const bool dense = taps_on_gradient != by_output && moved.channels == layout.rows();
    const int run = dense ? s.count[0] : 1;
    for (int r = 0; r < s.count[0]; ++r)
        for (int c = 0; c < s.count[0]; c += run, sums += layout.size(run)) {
            const int dr = s.taps[0][r].offset, dc = s.taps[0][c].offset;
            const float* x = taps_on_gradient ? in.at(i0, 0) : in.at(i0 * in_step + dr, dc);
            const float* g = taps_on_gradient ? gradient.at(i0 * gradient_step + dr, dc) : gradient.at(i0, 0);
            p.a = by_output ? x : g;
            p.b = by_output ? g : x;
            p.c = sums;
            multiply(p, run * layout.rows(), layout.columns());
        }
}

// dw[cout][cin][p][q] = sum over r, c of taps[r][p] taps[c][q] sums[r][c][cin][cout], for input channels from `first`
// on.
static void unpack_gradient(const float* sums, const Sums& layout, const float (*taps)[3], int n, int first, int cin_all,
                            float* dw) {
    const bool by_output = layout.by_output();
    const int rows = layout.rows(), across = by_output ? layout.cout : layout.cin;
    const int64_t plane = layout.size(1);
    // a vector of outputs (or inputs) at a time
    for_parts(layout.columns() / VL, [&](int64_t vector) {
        const int v = int(vector) * VL;
        for (int m = 0; m < rows; ++m) {
            vf sum[9];
            for (int t = 0; t < 9; ++t) sum[t] = splat(0.0f);
            for (int r = 0; r < n; ++r) {
                vf line[3] = {splat(0.0f), splat(0.0f), splat(0.0f)};
                for (int c = 0; c < n; ++c) {
                    const vf value = load(sums + (int64_t(r) * n + c) * plane + int64_t(m) * layout.columns() + v);
                    for (int q = 0; q < 3; ++q) line[q] += taps[c][q] * value;
                }
                for (int t = 0; t < 9; ++t) sum[t] += taps[r][t / 3] * line[t % 3];
            }
            for (int lane = 0; lane < VL && v + lane < across; ++lane) {
                const int o = by_output ? v + lane : m, i = by_output ? m : v + lane;
                float* to = dw + (int64_t(o) * cin_all + first + i) * 9;
                for (int t = 0; t < 9; ++t) to[t] = sum[t][lane];
            }
        }
    });
}

}  // namespace KILN_NAMESPACE
}  // namespace kiln
