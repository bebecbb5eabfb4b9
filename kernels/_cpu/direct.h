// Convolution as a sum of shifted products: a table of taps describes every pass, strided, transposed or resized.
#pragma once
#include "gemm.h"
#include "parallel.h"
#include "tensors.h"

namespace kiln {
namespace KILN_NAMESPACE {

constexpr int THIN = 4;  // most columns of a thin pass, whose output is an image: at most as many as a vector has lanes

typedef float v4_any __attribute__((vector_size(16), aligned(4), may_alias));

constexpr int MOST_TAPS = 7;  // of a kernel along one axis

// One tap along one axis: multiplies the input at `offset` with the combination g of the kernel's taps.
struct Tap {
    int offset;
    float g[MOST_TAPS];
};

// One axis of a pass: output o = step_out * i + phase reads inputs step_in * i + offset. A pass is the outer product of
// its two axes, which are alike. The offsets of a phase ascend by one; a phase may have no tap, then its outputs are 0.
struct Stencil {
    int step_in, step_out;
    int count[MOST_TAPS] = {};
    Tap taps[MOST_TAPS][MOST_TAPS] = {};

    int lowest() const { return extreme(-1); }
    int highest() const { return extreme(1); }
    int products() const {
        int taps = 0;
        for (int phase = 0; phase < step_out; ++phase) taps += count[phase];
        return taps * taps;
    }

private:
    int extreme(int sign) const {
        bool any = false;
        int best = 0;
        for (int phase = 0; phase < step_out; ++phase)
            for (int t = 0; t < count[phase]; ++t, any = true)
                if (!any || sign * taps[phase][t].offset > sign * best) best = taps[phase][t].offset;
        return best;
    }
};

// y[o] = sum over t of x[stride * o - padding + t] w[t].
static inline Stencil gathering(int kernel, int stride, int padding) {
    Stencil s{stride, 1};
    s.count[0] = kernel;
    for (int t = 0; t < kernel; ++t) {
        s.taps[0][t].offset = t - padding;
        s.taps[0][t].g[t] = 1;
    }
    return s;
}

// The transpose, a phase for each of `stride` outputs from output `first` on: y[i] = sum of x[o] w[t] over the o and t
// with stride * o - padding + t = i.
static inline Stencil scattering(int kernel, int stride, int padding, int first) {
    Stencil s{1, stride};
    for (int phase = 0; phase < stride; ++phase)
        for (int t = kernel - 1; t >= 0; --t) {
            const int reach = phase + first + padding - t;
            if (reach % stride) continue;
            Tap& tap = s.taps[phase][s.count[phase]++];
            tap.offset = reach / stride;
            tap.g[t] = 1;
        }
    return s;
}

// Nearest x2, then 3 taps with padding 1, and its transpose.
static inline Stencil enlarging() {
    return {1, 2, {2, 2}, {{{-1, {1, 0, 0}}, {0, {0, 1, 1}}}, {{0, {1, 1, 0}}, {1, {0, 0, 1}}}}};
}
static inline Stencil enlarging_adjoint() {
    return {2, 1, {4}, {{{-1, {0, 0, 1}}, {0, {0, 1, 1}}, {1, {1, 1, 0}}, {2, {1, 0, 0}}}}};
}

// A weight tensor, float32 and dense, read as a matrix depth x columns of kernels: the taps of kernel (k, n) lie tap_step
// apart from k * k_step + n * n_step on. reversed: the taps of each axis are read from the last to the first.
struct Weights {
    const float* data;
    int depth, columns;
    int64_t k_step, n_step, tap_step;
    const float* end;  // of the tensor
    bool reversed = false;

    int padded() const { return round_up(columns, VL); }
    bool thin() const { return columns <= THIN; }
    const float* at(int k, int n) const { return data + k * k_step + n * n_step; }
};

// Combines the rows of a kernel by g to one line of taps; T is float, or a vector with a kernel in each lane.
template <int SIDE, class T> static inline void combine_rows(const float* g, const T* kernel, T* line) {
    for (int q = 0; q < SIDE; ++q) {
        line[q] = kernel[q] * g[0];
        for (int p = 1; p < SIDE; ++p) line[q] += kernel[p * SIDE + q] * g[p];
    }
}

template <int SIDE, class T> static inline T combine(const T* line, const float* g) {
    T sum = line[0] * g[0];
    for (int q = 1; q < SIDE; ++q) sum += line[q] * g[q];
    return sum;
}

// Calls body(Number<side>): what loops over taps is compiled for each side of a kernel.
template <class Body> static inline void with_side(int side, Body body) {
    switch (side) {
    case 1: return body(Number<1>{});
    case 2: return body(Number<2>{});
    case 3: return body(Number<3>{});
    case 4: return body(Number<4>{});
    case 5: return body(Number<5>{});
    case 6: return body(Number<6>{});
    default: return body(Number<MOST_TAPS>{});
    }
}

// Loads kernels (k, n) of VL columns n from n0 on, one vector for each tap; zeros past the last column.
template <int SIDE> static inline void load_kernels(const Weights& w, int k, int n0, vf* taps) {
    constexpr int count = SIDE * SIDE, vectors = (count + VL - 1) / VL;
    const int n = w.columns - n0 < VL ? w.columns - n0 : VL;
    const float *first = w.at(k, n0), *last = w.at(k, n0 + n - 1);
    vf loaded[vectors * VL];
    if (n == VL && w.tap_step > 1 && w.n_step == 1) {
        for (int t = 0; t < count; ++t) loaded[t] = load(first + t * w.tap_step);
    } else if (n == VL && w.tap_step == 1 && first + vectors * VL <= w.end && last + vectors * VL <= w.end) {
        // whole vectors of each kernel: what they read past its end is other kernels
        for (int t = 0; t < count; t += VL) {
            for (int lane = 0; lane < VL; ++lane) loaded[t + lane] = load(w.at(k, n0 + lane) + t);
            transpose(loaded + t);
        }
    } else {
        alignas(64) float lanes[count][VL] = {};
        for (int lane = 0; lane < n; ++lane) {
            const float* kernel = w.at(k, n0 + lane);
            for (int t = 0; t < count; ++t) lanes[t][lane] = kernel[t * w.tap_step];
        }
        for (int t = 0; t < count; ++t) loaded[t] = load(lanes[t]);
    }
    for (int t = 0; t < count; ++t) taps[t] = loaded[w.reversed ? count - 1 - t : t];
}

// Loads kernels (k + j, n0 ... n0 + VL - 1) for VL steps j of the depth, which are neighbours in memory, to taps[j].
template <int SIDE> static inline void load_steps(const Weights& w, int k, int n0, vf (*taps)[SIDE * SIDE]) {
    constexpr int count = SIDE * SIDE;
    for (int t = 0; t < count; ++t) {
        vf rows[VL];
        for (int lane = 0; lane < VL; ++lane) {
            const float* from = w.at(k, n0 + lane) + t * w.tap_step;
            rows[lane] = load(from);
            __builtin_prefetch(from + 2 * VL, 0, 2);
        }
        transpose(rows);
        for (int j = 0; j < VL; ++j) taps[j][w.reversed ? count - 1 - t : t] = rows[j];
    }
}

// Combinations row[r] x column[c] of kernels, `rows` times `columns` of them, in lines of `stride` numbers.
struct Combinations {
    const float* row;
    int rows;
    const float* column;
    int columns, stride;
    int products() const { return rows * columns; }
};

// Writes the combinations of kernels (k, n), k from k0 on and n from n0 on, as [r][c][k][width]: of each combination the
// matrix lies `plane` after the one before.
template <int SIDE>
static inline void pack_panel(const Weights& w, const Combinations& of, int k0, int count, int n0, int width, int64_t plane,
                              float* out) {
    constexpr int AHEAD = 32;  // steps of the depth that memory is asked for before they are read
    vf kernels[VL][SIDE * SIDE];
    for (int v = 0; v < width; v += VL)
        for (int k = 0; k < count; ++k) {
            const bool whole = n0 + v + VL <= w.columns && k / VL * VL + VL <= count;
            const bool by_steps = w.k_step == 1 && w.tap_step > 1 && whole;
            const vf* kernel = kernels[by_steps ? k % VL : 0];
            if (!by_steps) {
                const float* ahead = w.at(k0 + k + AHEAD, n0 + v);
                const int64_t step = w.tap_step > 1 ? w.tap_step : w.n_step;
                for (int i = 0; i < (w.tap_step > 1 ? SIDE * SIDE : VL); ++i) __builtin_prefetch(ahead + i * step, 0, 2);
                load_kernels<SIDE>(w, k0 + k, n0 + v, kernels[0]);
            } else if (k % VL == 0) {
                load_steps<SIDE>(w, k0 + k, n0 + v, kernels);
            }
            float* to = out + int64_t(k) * width + v;
            for (int r = 0; r < of.rows; ++r) {
                vf line[SIDE];
                combine_rows<SIDE>(of.row + r * of.stride, kernel, line);
                for (int c = 0; c < of.columns; ++c, to += plane) store(to, combine<SIDE>(line, of.column + c * of.stride));
            }
        }
}

// Packs all combinations panel by panel: [panel][r][c][depth][panel width].
template <int SIDE> static void pack(const Weights& w, const Combinations& of, float* out) {
    // steps of the depth whose combinations are gathered, so that they are written in long runs
    const int run_length = w.tap_step > 1 && VL > 8 ? VL : 8;
    const int depth = w.depth, padded = w.padded(), products = of.products();
    for_parts<Sharing::TO_THE_NEXT>((padded + 2 * VL - 1) / (2 * VL), [&](int64_t number) {
        const int n0 = int(number) * 2 * VL, width = panel_width(n0, padded);
        float* panel = out + int64_t(n0) * products * depth;
        float* gathered = scratch(Slot::GATHERED, int64_t(products) * run_length * width);
        for (int k0 = 0; k0 < depth; k0 += run_length) {
            const int run = depth - k0 < run_length ? depth - k0 : run_length;
            pack_panel<SIDE>(w, of, k0, run, n0, width, run_length * width, gathered);
            for (int p = 0; p < products; ++p)
                std::memcpy(panel + (int64_t(p) * depth + k0) * width, gathered + int64_t(p) * run_length * width,
                            sizeof(float) * run * width);
        }
    });
}

// Floats that packed weights take. A thin pass has the columns (tap, n) of all its taps side by side as one matrix,
// padded to whole vectors.
static int64_t packed_floats(const Weights& w, int products) {
    return int64_t(w.depth) * (w.thin() ? round_up(products * w.columns, VL) : int64_t(products) * w.padded());
}

// Packs the weights of a thin pass panel by panel, [panel][depth][panel width]; the taps in the order phase, row,
// column.
template <int SIDE> static void pack_thin(const Weights& w, const Stencil& s, float* out) {
    const int depth = w.depth, padded = round_up(s.products() * w.columns, VL);
    std::memset(out, 0, sizeof(float) * depth * padded);
    int column = 0;
    for (int pr = 0; pr < s.step_out; ++pr)
        for (int pc = 0; pc < s.step_out; ++pc)
            for (int r = 0; r < s.count[pr]; ++r)
                for (int c = 0; c < s.count[pc]; ++c)
                    for (int n = 0; n < w.columns; ++n, ++column) {
                        const int n0 = panel_start(column), width = panel_width(n0, padded);
                        for (int k = 0; k < depth; ++k) {
                            float kernel[SIDE * SIDE], line[SIDE];
                            for (int t = 0; t < SIDE * SIDE; ++t) kernel[t] = w.at(k, n)[t * w.tap_step];
                            combine_rows<SIDE>(s.taps[pr][r].g, kernel, line);
                            out[int64_t(n0) * depth + int64_t(k) * width + (column - n0)] =
                                combine<SIDE>(line, s.taps[pc][c].g);
                        }
                    }
}

// Packs the weights of all phases of a stencil, one phase after another.
template <int SIDE> static void pack_stencil(const Weights& w, const Stencil& s, float* out) {
    if (w.thin()) return pack_thin<SIDE>(w, s, out);
    for (int pr = 0; pr < s.step_out; ++pr)
        for (int pc = 0; pc < s.step_out; ++pc) {
            float row[MOST_TAPS][MOST_TAPS], column[MOST_TAPS][MOST_TAPS];
            for (int t = 0; t < s.count[pr]; ++t) std::memcpy(row[t], s.taps[pr][t].g, sizeof row[t]);
            for (int t = 0; t < s.count[pc]; ++t) std::memcpy(column[t], s.taps[pc][t].g, sizeof column[t]);
            pack<SIDE>(w, {row[0], s.count[pr], column[0], s.count[pc], MOST_TAPS}, out);
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
          columns((cells - 1) * s.step_in + kept), padded(round_up(s.products() * w.columns, VL)), next(-(1 << 30)),
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
            p.b = packed + int64_t(n0) * w.depth;
            p.b_step = width;
            p.segments = 1;
            p.depth = w.depth;
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
                const int across = s.count[pc], n = w.columns;
                const float* line[MOST_TAPS];
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

// Writes phase (pr, pc) of cell row i by matrix products, of which each cell reads its inputs cell_step after those of the
// cell before; `to` is its first pixel, the next one lies to_step further.
static void wide_phase(const Stencil& s, int pr, int pc, const Band& in, const Weights& w, const float* packed, int i,
                       int cells, int64_t cell_step, float* to, int64_t to_step, bool accumulate) {
    const int depth = w.depth, padded = w.padded(), taps = s.count[pr] * s.count[pc];
    // where pixels lie dense, the taps of a row read one run of numbers
    const int run = in.channels == depth && taps ? s.count[pc] : 1;
    int64_t a_segment[MOST_TAPS * MOST_TAPS], b_segment[MOST_TAPS * MOST_TAPS];
    int segments = 0;
    for (int r = 0; r < s.count[pr]; ++r)
        for (int c = 0; c < s.count[pc]; c += run)
            a_segment[segments++] = in.at(i * s.step_in + s.taps[pr][r].offset, s.taps[pc][c].offset) - in.data;
    for (int n0 = 0; n0 < padded;) {
        const int width = panel_width(n0, padded);
        for (int t = 0; t < segments; ++t) b_segment[t] = int64_t(t) * run * depth * width;
        Product p{};
        p.a = in.data;
        p.a_row = cell_step;
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
                      int64_t cell_step, float* rows, bool accumulate) {
    const int64_t step = int64_t(s.step_out) * w.padded();
    for (int pr = 0; pr < s.step_out; ++pr)
        for (int pc = 0; pc < s.step_out; ++pc) {
            float* to = rows + (int64_t(pr) * cells * s.step_out + pc) * w.padded();
            wide_phase(s, pr, pc, in, w, packed, i, cells, cell_step, to, step, accumulate);
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
        const int64_t step = int64_t(s.step_in) * in.channels;
        for (int i = r0; i < r1; ++i) wide_rows(s, in, w, packed, i, cells, step, rows_of(i), accumulate), done(i);
    }
}

// Applies an activation to n numbers in place.
static void activate_all(Activation activation, float* data, int64_t n, float slope) {
    int64_t i = 0;
    for (; i + VL <= n; i += VL) store(data + i, activate(activation, load(data + i), slope));
    if (i < n) {
        const vf rest = load_part(F32, data, i, int(n - i));
        store_part(F32, data, i, activate(activation, rest, slope), int(n - i));
    }
}

// Stores one float32 row of padded pixels, the first of which is column `first`, as output row `row` of one image; leaves
// out what lies outside of the image and its frame.
static void put_row(const Sink& sink, int64_t image, int row, int first, int count, const float* from, int padded) {
    const Span columns = sink.columns(first, count);
    if (sink.rows(row, 1).empty() || columns.empty()) return;
    const Span inside = sink.holds(row, 0, 1) ? Span{first < 0 ? -first : 0, sink.width - first} : Span{0, 0};
    const auto put_frame = [&](int i, int last) {
        for (; i < last; ++i)
            for (int c = 0; c < padded; c += VL)
                sink.put_outside(image, row, first + i, c, load(from + int64_t(i) * padded + c));
    };
    const int left = inside.empty() ? columns.last : inside.first, right = inside.last < columns.last ? inside.last : columns.last;
    put_frame(columns.first, left);
    if (inside.empty()) return;
    put_frame(right, columns.last);
    from += int64_t(left) * padded;
    const int64_t pixel0 = sink.pixel(image, row, first + left);
    if (sink.channels <= THIN && sink.dtype == F32 && sink.data && !sink.channels2) {
        float *row = static_cast<float*>(sink.data) + pixel0 * sink.channels, *to = row;
        for (int i = left; i < right; ++i, from += padded)
            for (int c = 0; c < sink.channels; ++c) {
                const float value = sink.scale ? from[c] * sink.scale[c] : from[c];
                *to++ = value + (sink.bias ? sink.bias[c] : 0.0f);
            }
        if (const float* more = static_cast<const float*>(sink.residual))
            for (int64_t i = 0; i < to - row; ++i) row[i] += more[pixel0 * sink.channels + i];
        // few of a vector's lanes are channels of a pixel, all of them numbers of the row
        if (sink.activation != NONE) activate_all(sink.activation, row, to - row, sink.slope);
        return;
    }
    with_put(sink, [&](auto put) {
        for (int i = 0; i < right - left; ++i)
            for (int c = 0; c < padded; c += VL) put(pixel0 + i, c, load(from + int64_t(i) * padded + c));
    });
}

// Where the sums of a weight gradient lie: [tap][cin][padded cout], or, not by_output, [tap][cout][padded cin].
struct Sums {
    int cin, cout;
    bool by_output;
    int rows() const { return by_output ? cin : cout; }
    int columns() const { return round_up(by_output ? cout : cin, VL); }
    int64_t size(int taps) const { return int64_t(taps) * rows() * columns(); }
};

// Whether the vectors of direct sums run along the output channels: along the input channels where the output has few.
static inline bool sums_by_output(int cin, int cout) { return cout > THIN || cin <= THIN; }

// Weight gradient of cell rows [i0, i1): sums += input x gradient, shifted against each other by each tap. The stencil
// moves one of the two, `moved`; of the other, cell (i, j) meets the pixel at i + fixed_first, j + fixed_first.
// moves_gradient: which of them is moved; moved_step, fixed_step: floats from a cell to the next one of its row.
static void direct_weight_gradient(const Stencil& s, bool moves_gradient, const Band& moved, const Band& fixed,
                                   int fixed_first, const Sums& layout, int i0, int i1, int cells, int64_t moved_step,
                                   int64_t fixed_step, float* sums) {
    int64_t* moved_segment = reinterpret_cast<int64_t*>(scratch(Slot::SEGMENTS, int64_t(i1 - i0) * 4));
    int64_t* fixed_segment = moved_segment + (i1 - i0);
    for (int i = 0; i < i1 - i0; ++i) {
        moved_segment[i] = int64_t(i) * s.step_in * moved.columns * moved.channels;
        fixed_segment[i] = int64_t(i) * fixed.columns * fixed.channels;
    }
    // rows of the product are the channels of the one, columns those of the other
    const bool moved_is_rows = moves_gradient != layout.by_output;
    Product p{};
    p.a_row = 1;
    p.a_step = moved_is_rows ? moved_step : fixed_step;
    p.b_step = moved_is_rows ? fixed_step : moved_step;
    p.segments = i1 - i0;
    p.a_segment = moved_is_rows ? moved_segment : fixed_segment;
    p.b_segment = moved_is_rows ? fixed_segment : moved_segment;
    p.depth = cells;
    p.c_row = layout.columns();
    p.accumulate = true;
    // where the shifted tensor's pixels lie dense, the taps of a row are one run of rows of the product
    const int run = moved_is_rows && moved.channels == layout.rows() ? s.count[0] : 1;
    const float* at_rest = fixed.at(i0 + fixed_first, fixed_first);
    for (int r = 0; r < s.count[0]; ++r)
        for (int c = 0; c < s.count[0]; c += run, sums += layout.size(run)) {
            const float* shifted = moved.at(i0 * s.step_in + s.taps[0][r].offset, s.taps[0][c].offset);
            p.a = moved_is_rows ? shifted : at_rest;
            p.b = moved_is_rows ? at_rest : shifted;
            p.c = sums;
            multiply(p, run * layout.rows(), layout.columns());
        }
}

// The gradient of a weight, float32 contiguous: the kernel of an output and an input channel lies at
// output * o_step + input * i_step.
struct WeightGradient {
    float* data;
    int64_t o_step, i_step;
};

// taps[p * SIDE + q] = sum over r, c of lines[r][p] lines[c][q] sums[(r * n + c) * plane]; lines: n of `stride` numbers.
template <int SIDE>
static inline void unpack_kernels(const float* sums, int64_t plane, const float* lines, int n, int stride, float (*taps)[VL]) {
    vf sum[SIDE * SIDE];
    for (int t = 0; t < SIDE * SIDE; ++t) sum[t] = splat(0.0f);
    for (int r = 0; r < n; ++r) {
        vf line[SIDE];
        for (int q = 0; q < SIDE; ++q) line[q] = splat(0.0f);
        for (int c = 0; c < n; ++c) {
            const vf value = load(sums + (int64_t(r) * n + c) * plane);
            for (int q = 0; q < SIDE; ++q) line[q] += lines[c * stride + q] * value;
        }
        for (int p = 0; p < SIDE; ++p)
            for (int q = 0; q < SIDE; ++q) sum[p * SIDE + q] += lines[r * stride + p] * line[q];
    }
    for (int t = 0; t < SIDE * SIDE; ++t) store(taps[t], sum[t]);
}

// Kernels of a weight gradient, to[p][q] = sum over r, c of lines[r][p] lines[c][q] sums[r][c]: those of `rows` rows and
// `columns` columns, whole vectors, from (row0, column0) of the layout on. sums: n * n matrices, `plane` apart, of rows that
// are `row_floats` apart; lines: n of `stride` numbers.
template <int SIDE>
static void unpack_block(const float* sums, int64_t plane, int64_t row_floats, const Sums& layout, int row0, int rows,
                         int column0, int columns, const float* lines, int n, int stride, const WeightGradient& to) {
    constexpr int RUN = 8;  // rows of the sums at a time, so that neighbouring kernels are written together
    const bool by_output = layout.by_output;
    const int across = by_output ? layout.cout : layout.cin;
    for (int m0 = 0; m0 < rows; m0 += RUN) {
        const int run = rows - m0 < RUN ? rows - m0 : RUN;
        for (int v = 0; v < columns; v += VL) {
            alignas(64) float kernels[RUN][SIDE * SIDE][VL];
            for (int m = 0; m < run; ++m)
                unpack_kernels<SIDE>(sums + (m0 + m) * row_floats + v, plane, lines, n, stride, kernels[m]);
            for (int lane = 0; lane < VL && column0 + v + lane < across; ++lane)
                for (int m = 0; m < run; ++m) {
                    const int64_t row = row0 + m0 + m, column = column0 + v + lane;
                    float* kernel = to.data + (by_output ? column : row) * to.o_step + (by_output ? row : column) * to.i_step;
                    for (int t = 0; t < SIDE * SIDE; ++t) kernel[t] = kernels[m][t][lane];
                }
        }
    }
}

// The kernels of all sums.
template <int SIDE>
static void unpack_gradient(const float* sums, const Sums& layout, const float* lines, int n, int stride,
                            const WeightGradient& to) {
    constexpr int ROWS = 8;  // of a part
    const int columns = layout.columns(), rows = layout.rows();
    for_parts<Sharing::TO_THE_NEXT>((rows + ROWS - 1) / ROWS, [&](int64_t part) {
        const int first = int(part) * ROWS, count = rows - first < ROWS ? rows - first : ROWS;
        unpack_block<SIDE>(sums + int64_t(first) * columns, layout.size(1), columns, layout, first, count, 0, columns, lines, n,
                           stride, to);
    });
}

}  // namespace KILN_NAMESPACE
}  // namespace kiln
