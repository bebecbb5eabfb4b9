// Convolution by products in a transformed domain: runs the algorithms of algorithms.h on blocks of tiles.
#pragma once
#include "algorithms.h"
#include "direct.h"

namespace kiln {
namespace KILN_NAMESPACE {

// The tiles of a band, numbered along the rows of one image after another; a block is a run of tiles.
struct Tiles {
    int row0, rows, columns, images;  // rows and columns in tiles, of each image
    int count() const { return images * rows * columns; }
    int image(int t) const { return t / (rows * columns); }
    int row(int t) const { return row0 + t / columns % rows; }
    int column(int t) const { return t % columns; }
};

// Floats from one product's matrix of a block to the next one's: a cache line more than a matrix fills, so that the
// P * P cache lines that one tile touches do not fall in the same cache set.
static inline int64_t plane_floats(int64_t block, int channels) { return block * channels + 16; }

// Where tiles lie in the transformed domain: those of a value `plane` floats after those of the value before; of them, VL
// channels of a tile `tile` floats after those of the tile before, and of the channels before `vector` floats.
struct TileLayout {
    int64_t plane, tile, vector;

    // [value][tile][channels]: rows of a product
    static TileLayout rows(int64_t tiles, int channels) { return {plane_floats(tiles, channels), channels, VL}; }
    // [value][vector of channels][tile][VL]: what a product of two such, of all tiles, reads lies side by side
    static TileLayout panels(int64_t tiles, int channels) { return {plane_floats(tiles, channels), VL, tiles * VL}; }
};

// Pixels of a band, from a corner on.
struct Square {
    const float* corner;
    int64_t line, pixel;  // floats from a pixel to the one below it, and beside it
    const float* operator()(int i, int j) const { return corner + i * line + j * pixel; }
};

// Writes the transform of one IN x IN square, whose pixel (i, j) lies at at(i, j), as a tile of P * P values. Meanwhile
// memory is asked for columns [known, IN) of the square that is transformed next.
template <int IN, int P, void (*transform)(const vf*, vf*), class At>
static inline void transform_square(At at, const Square& next, int known, int channels, float scale, const TileLayout& layout,
                                    float* out) {
    const int64_t plane = layout.plane;
    for (int c = 0; c < channels; c += VL, out += layout.vector) {
        for (int i = 0; i < IN; ++i)
            for (int j = known; j < IN; ++j) __builtin_prefetch(next(i, j) + c, 0, 2);
        vf rows[P][IN];
        for (int j = 0; j < IN; ++j) {
            vf x[IN], r[P];
            for (int i = 0; i < IN; ++i) x[i] = load(at(i, j) + c);
            if (scale != 1.0f)
                for (int i = 0; i < IN; ++i) x[i] *= scale;
            transform(x, r);
            for (int p = 0; p < P; ++p) rows[p][j] = r[p];
        }
        for (int p = 0; p < P; ++p) {
            vf r[P];
            transform(rows[p], r);
            for (int q = 0; q < P; ++q) store(out + (p * P + q) * plane, r[q]);
        }
    }
}

// Writes `count` tiles, the `transform`, from IN to P values along both axes, of the squares at tile * step + offset of a
// band. scale: a factor for each image of the band, or null.
template <int IN, int P, void (*transform)(const vf*, vf*)>
static void transform_tiles(const Band& band, const Tiles& tiles, int t0, int count, int step, int offset, const float* scale,
                            const TileLayout& layout, float* out) {
    const int channels = band.channels, known = step < IN ? IN - step : 0;
    const float* zeros = nullptr;
    const auto square = [&](int t) {  // its pixels past the band's edges are not those of the band
        const float* first = band.at(tiles.row(t) * step + offset, tiles.column(t) * step + offset);
        return Square{first + tiles.image(t) * band.image_step, int64_t(band.columns) * channels, channels};
    };
    for (int t = t0; t < t0 + count; ++t) {
        const int image = tiles.image(t), row = tiles.row(t) * step + offset, column = tiles.column(t) * step + offset;
        const float factor = scale ? scale[image] : 1.0f;
        const Square next = square(t + 1);
        float* to = out + (t - t0) * layout.tile;
        if (band.holds(row, column, IN)) {
            transform_square<IN, P, transform>(square(t), next, known, channels, factor, layout, to);
            continue;
        }
        if (!zeros) zeros = static_cast<float*>(std::memset(scratch(Slot::ZEROS, channels), 0, sizeof(float) * channels));
        const float* pixels[IN][IN];
        for (int i = 0; i < IN; ++i)
            for (int j = 0; j < IN; ++j)
                pixels[i][j] = pixel_or(band.image(image), row + i, column + j, zeros);
        transform_square<IN, P, transform>([&](int i, int j) { return pixels[i][j]; }, next, known, channels, factor, layout, to);
    }
}

// Sums of another pass that are added to the outputs of a band, float32: [image][row][column][padded channels].
struct Addend {
    const float* data;  // null: nothing is added
    int row0, columns;
    int64_t image_step;
};

// Writes the results of tiles [t0, t0 + count) to the sink's channels [c0, c0 + padded), after the addend is added to them.
// m: sums of `padded` channels of a tile, those of one sum `plane` after those of the one before; first: the output at
// which tile 0 begins.
template <class A>
__attribute__((noinline)) static void transform_output(const float* m, int64_t plane, int c0, int padded, const Tiles& tiles, int t0, int count,
                             int first, const Sink& sink, Images images, const Addend& add) {
    with_put(sink, [&](auto put) {
        for (int t = 0; t < count; ++t) {
            const int row0 = tiles.row(t0 + t) * A::OUT + first, column0 = tiles.column(t0 + t) * A::OUT + first;
            const int image = tiles.image(t0 + t);
            const Span rows = sink.rows(row0, A::OUT), columns = sink.columns(column0, A::OUT);
            const bool inside = sink.holds(row0, column0, A::OUT);
            for (int c = 0; c < padded; c += VL) {
                const float* from = m + int64_t(t) * padded + c;
                vf part[A::OUT][A::Q];
                for (int q = 0; q < A::Q; ++q) {
                    vf x[A::Q], y[A::OUT];
                    for (int p = 0; p < A::Q; ++p) x[p] = load(from + (p * A::Q + q) * plane);
                    A::output(x, y);
                    for (int o = 0; o < A::OUT; ++o) part[o][q] = y[o];
                }
                if (inside && !add.data) {
                    for (int o = 0; o < A::OUT; ++o) {
                        vf y[A::OUT];
                        A::output(part[o], y);
                        const int64_t pixel0 = sink.pixel(images.first + image, row0 + o, column0);
                        for (int i = 0; i < A::OUT; ++i) put(pixel0 + i, c0 + c, y[i]);
                    }
                    continue;
                }
                for (int o = rows.first; o < rows.last; ++o) {
                    vf y[A::OUT];
                    A::output(part[o], y);
                    if (add.data) {
                        const float* more = add.data + image * add.image_step + c +
                                            (int64_t(row0 + o - add.row0) * add.columns + column0) * padded;
                        for (int i = columns.first; i < columns.last; ++i) y[i] += load(more + int64_t(i) * padded);
                    }
                    const int64_t pixel0 = sink.pixel(images.first + image, row0 + o, column0);
                    for (int i = columns.first; i < columns.last; ++i)
                        if (sink.holds(row0 + o, column0 + i, 1))
                            put(pixel0 + i, c0 + c, y[i]);
                        else
                            sink.put_outside(images.first + image, row0 + o, column0 + i, c0 + c, y[i]);
                }
            }
        }
    });
}

// Of the L2 cache, for a block's transformed inputs and products; and of memory, where a block is larger than the cache.
constexpr int64_t BLOCK_BYTES = 512 << 10, LARGE_BLOCK_BYTES = 2 << 20;
// Of the L2 cache, for the packed weights of a panel of outputs; and what all packed weights or their sums may be to stay in
// it.
constexpr int64_t PANEL_BYTES = 512 << 10, WEIGHT_BYTES = 1 << 20;

// Tiles of a block, in blocks of nearly equal size: from 28 to 112, as many as BLOCK_BYTES hold. Where the weights that each
// block reads, or their gradients, are more than what the block's tiles write and read again, a block is larger.
// floats: of a tile; weights: floats that are moved for each block.
static inline int block_tiles(int tiles, int64_t floats, int64_t weights) {
    const int64_t fit = BLOCK_BYTES / (4 * floats), large = LARGE_BLOCK_BYTES / (4 * floats);
    int64_t most = fit < 28 ? 28 : fit > 112 ? 112 : fit;
    if (large > most && weights / most > 2 * floats + weights / large) most = large;
    const int64_t blocks = (tiles + most - 1) / most;
    return int((tiles + blocks - 1) / blocks);
}

// The products along both axes that are added to each of the Q x Q sums: their count, and of each its number among the
// P x P and the number of its value among the D x D.
template <class A> struct Terms {
    int count[A::Q * A::Q] = {}, product[A::Q * A::Q][A::P * A::P] = {}, value[A::Q * A::Q][A::P * A::P] = {};
    constexpr Terms() {
        for (int r = 0; r < A::P; ++r)
            for (int c = 0; c < A::P; ++c) {
                const int sum = A::SUM[r] * A::Q + A::SUM[c], n = count[sum]++;
                product[sum][n] = r * A::P + c;
                value[sum][n] = A::VALUE[r] * A::D + A::VALUE[c];
            }
    }
};

// Runs a convolution pass on tile rows [r0, r1) of a band. Tile t reads inputs from t * STEP + in_first on and makes the
// outputs from t * OUT + out_first on.
template <class A>
static void transform_band(const Band& in, const Weights& w, const float* packed, int in_first, int out_first, int r0,
                           int r1, int columns, const Sink& sink, Images images, const Addend& add) {
    static constexpr Terms<A> terms{};
    const Tiles tiles{r0, r1 - r0, columns, images.count};
    const int depth = w.depth, padded = w.padded(), count = tiles.count();
    constexpr int products = A::P * A::P, values = A::D * A::D, sums = A::Q * A::Q;
    const int block = block_tiles(count, int64_t(values) * in.channels + int64_t(sums) * padded,
                                  int64_t(products) * depth * padded);
    const TileLayout layout = TileLayout::rows(block, in.channels);
    const int64_t m_plane = plane_floats(block, padded);
    float* u = scratch(Slot::TRANSFORMED_INPUTS, values * layout.plane);
    float* m = scratch(Slot::TRANSFORMED_PRODUCTS, sums * m_plane);
    int64_t a_segment[products], b_segment[products];
    for (int t0 = 0; t0 < count; t0 += block) {
        const int n = count - t0 < block ? count - t0 : block;
        transform_tiles<A::IN, A::D, A::input>(in, tiles, t0, n, A::STEP, in_first, nullptr, layout, u);
        for (int q = 0; q < sums; ++q)
            for (int n0 = 0, width; n0 < padded; n0 += width) {
                width = panel_width(n0, padded);
                for (int s = 0; s < terms.count[q]; ++s) {
                    a_segment[s] = terms.value[q][s] * layout.plane;
                    b_segment[s] = int64_t(terms.product[q][s]) * width * depth;
                }
                Product p{};
                p.a = u;
                p.a_row = in.channels;
                p.a_step = 1;
                p.b = packed + int64_t(n0) * products * depth;
                p.b_step = width;
                p.segments = terms.count[q];
                p.a_segment = a_segment;
                p.b_segment = b_segment;
                // the next panel is as wide, but for the last one
                p.ahead = n0 + 2 * width <= padded ? p.b + int64_t(width) * products * depth : nullptr;
                p.depth = depth;
                p.c = m + q * m_plane + n0;
                p.c_row = padded;
                multiply_panel(p, n, width);
            }
        transform_output<A>(m, m_plane, 0, padded, tiles, t0, n, out_first, sink, images, add);
    }
}

// The combinations of taps that an algorithm's products take, the same along both axes.
template <class A> static Combinations combinations_of() { return {A::G[0], A::P, A::G[0], A::P, A::K}; }

// Runs a pass over all tiles, transformed before, where the weights are more than the tiles: the weights of a panel of
// outputs, for as much of the depth as fits the cache, are packed and multiplied with all tiles at once, so that no packed
// weight leaves the cache. images: those that the tiles are of.
template <class A>
static void transform_panels(const float* u, int channels, const Weights& w, const Tiles& tiles, int out_first,
                             const Sink& sink, Images images) {
    static constexpr Terms<A> terms{};
    constexpr int products = A::P * A::P, sums = A::Q * A::Q;
    const Combinations combinations = combinations_of<A>();
    const int depth = w.depth, padded = w.padded(), count = tiles.count();
    const TileLayout layout = TileLayout::rows(count, channels);
    const int64_t panels = (padded + 2 * VL - 1) / (2 * VL);
    const int most = int(PANEL_BYTES / (4 * products * 2 * VL)), run = most < depth ? most : depth;
    for_parts<Sharing::TO_THE_NEXT>(panels, [&](int64_t number) {
        const int n0 = int(number) * 2 * VL, width = panel_width(n0, padded);
        const int64_t plane = plane_floats(run, width), m_plane = plane_floats(count, width);
        float* packed = scratch(Slot::GATHERED, products * plane);
        float* m = scratch(Slot::TRANSFORMED_PRODUCTS, sums * m_plane);
        int64_t a_segment[products], b_segment[products];
        for (int k0 = 0; k0 < depth; k0 += run) {
            const int n = depth - k0 < run ? depth - k0 : run;
            pack_panel<A::K>(w, combinations, k0, n, n0, width, plane, packed);
            for (int q = 0; q < sums; ++q) {
                for (int s = 0; s < terms.count[q]; ++s) {
                    a_segment[s] = terms.value[q][s] * layout.plane;
                    b_segment[s] = terms.product[q][s] * plane;
                }
                Product p{};
                p.a = u + k0;
                p.a_row = channels;
                p.a_step = 1;
                p.b = packed;
                p.b_step = width;
                p.segments = terms.count[q];
                p.a_segment = a_segment;
                p.b_segment = b_segment;
                p.depth = n;
                p.c = m + q * m_plane;
                p.c_row = width;
                p.accumulate = k0 > 0;
                multiply_panel(p, count, width);
            }
        }
        transform_output<A>(m, m_plane, n0, width, tiles, 0, count, out_first, sink, images, {});
    });
}

// Tiles of both operands of a weight gradient in the transformed domain, in panels: u, D * D values of a tile, the inputs of an
// algorithm; m, Q * Q values, the transpose of its output transform.
struct Operands {
    int64_t tiles;
    float *u, *m;
    TileLayout of_u, of_m;

    // values, gradients: of a tile; u_channels, m_channels: of each value, whole vectors
    Operands(int64_t tiles, int values, int u_channels, int gradients, int m_channels, Slot for_u, Slot for_m)
        : tiles(tiles), of_u(TileLayout::panels(tiles, u_channels)), of_m(TileLayout::panels(tiles, m_channels)) {
        u = scratch(for_u, values * of_u.plane);
        m = scratch(for_m, gradients * of_m.plane);
    }
};

// Writes tiles [t0, t0 + count) of a band as the operands' tiles from `to` on. in_first: the input that the algorithm's tile 0
// begins at; scale: a factor for each image, or null.
template <class A>
static void transform_operands(const Band& first, int in_first, const Band& second, const Tiles& tiles, int t0, int count,
                               const float* scale, const Operands& all, int64_t to) {
    transform_tiles<A::IN, A::D, A::input>(first, tiles, t0, count, A::STEP, in_first, nullptr, all.of_u, all.u + to * VL);
    transform_tiles<A::OUT, A::Q, A::output_adjoint>(second, tiles, t0, count, A::OUT, 0, scale, all.of_m, all.m + to * VL);
}

// The sums over tiles [t0, t0 + count) of u times m, each of P * P products by its value and its sum, for `rows` channels of u
// from row0 on and `columns` of m, whole vectors, from column0 on: added to `sums`, or, not accumulate, written there. A matrix
// of the sums lies `plane` after the one before, a row `row_floats`.
template <class A>
static void multiply_operands(const Operands& all, int64_t t0, int count, int row0, int rows, int column0, int columns,
                              int64_t plane, int64_t row_floats, bool accumulate, float* sums) {
    Product p{};
    p.a_row = 1;
    p.a_step = p.b_step = VL;
    p.b_vector = all.of_m.vector;
    p.segments = 1;
    p.depth = count;
    p.c_row = row_floats;
    p.accumulate = accumulate;
    for (int r = 0; r < A::P; ++r)
        for (int c = 0; c < A::P; ++c, sums += plane) {
            const float* u = all.u + (A::VALUE[r] * A::D + A::VALUE[c]) * all.of_u.plane + t0 * VL;
            const float* m = all.m + (A::SUM[r] * A::Q + A::SUM[c]) * all.of_m.plane + t0 * VL;
            for (int n0 = 0, width; n0 < columns; n0 += width) {
                width = panel_width(n0, columns);
                p.b = m + (column0 + n0) / VL * all.of_m.vector;
                for (int m0 = 0; m0 < rows; m0 += VL) {
                    p.a = u + (row0 + m0) / VL * all.of_u.vector;
                    p.c = sums + m0 * row_floats + n0;
                    multiply_panel(p, rows - m0 < VL ? rows - m0 : VL, width);
                }
            }
        }
}

// Weight gradient of tile rows [r0, r1) in the transformed domain, block by block of tiles: sums[P * P][channels of the
// first][padded channels of the second] += u^T m.
template <class A>
static void transform_weight_gradient(const Band& first, int in_first, const Band& second, const Sums& layout, int r0,
                                      int r1, int columns, int images, const float* scale, float* sums) {
    const Tiles tiles{r0, r1 - r0, columns, images};
    const int padded = second.channels, count = tiles.count();
    constexpr int values = A::D * A::D, gradients = A::Q * A::Q;
    const int block = block_tiles(count, int64_t(values) * first.channels + int64_t(gradients) * padded,
                                  2 * layout.size(A::P * A::P));
    const Operands all(block, values, first.channels, gradients, padded, Slot::TRANSFORMED_INPUTS, Slot::TRANSFORMED_PRODUCTS);
    for (int t0 = 0; t0 < count; t0 += block) {
        const int n = count - t0 < block ? count - t0 : block;
        transform_operands<A>(first, in_first, second, tiles, t0, n, scale, all, 0);
        multiply_operands<A>(all, 0, n, 0, layout.rows(), 0, padded, layout.size(1), padded, true, sums);
    }
}

// Weight gradient of all tiles, where the sums of all kernels are too many to be kept for each thread: those of a block of
// rows and columns at a time, of which the gradient's kernels are made at once.
template <class A>
static void gradient_of_operands(const Operands& all, const Sums& layout, const float* lines, int stride,
                                 const WeightGradient& to) {
    constexpr int products = A::P * A::P, RUN = 192;  // tiles that are added up at a time
    const int rows = layout.rows(), columns = layout.columns(), threads = wanted_threads();
    int high = 64, wide = 128;  // of a block
    const auto blocks = [](int n, int size) { return (n + size - 1) / size; };
    while (blocks(rows, high) * blocks(columns, wide) < 3 * threads && (high > VL || wide > 2 * VL))
        (wide > 2 * VL && (wide > high || high == VL) ? wide : high) /= 2;
    const int row_blocks = blocks(rows, high), column_blocks = blocks(columns, wide);
    for_parts<Sharing::TO_THE_NEXT>(int64_t(row_blocks) * column_blocks, [&](int64_t part) {
        // neighbouring parts read the same columns
        const int row0 = int(part % row_blocks) * high, column0 = int(part / row_blocks) * wide;
        const int height = rows - row0 < high ? rows - row0 : high, width = columns - column0 < wide ? columns - column0 : wide;
        const int64_t plane = plane_floats(high, width);
        float* sums = scratch(Slot::BLOCK_SUMS, products * plane);
        if (!all.tiles) std::memset(sums, 0, sizeof(float) * products * plane);
        for (int64_t t0 = 0; t0 < all.tiles; t0 += RUN) {
            const int n = all.tiles - t0 < RUN ? int(all.tiles - t0) : RUN;
            multiply_operands<A>(all, t0, n, row0, height, column0, width, plane, width, t0 > 0, sums);
        }
        unpack_block<A::K>(sums, plane, width, layout, row0, height, column0, width, lines, A::P, stride, to);
    });
}

}  // namespace KILN_NAMESPACE
}  // namespace kiln
