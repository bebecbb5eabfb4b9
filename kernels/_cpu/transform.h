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
static inline int64_t plane_floats(int block, int channels) { return int64_t(block) * channels + 16; }

// Writes the transform of one IN x IN square, whose pixel (i, j) lies at at(i, j), to P * P planes.
template <int IN, int P, void (*transform)(const vf*, vf*), class At>
static inline void transform_square(At at, int channels, float scale, int64_t plane, float* out) {
    for (int c = 0; c < channels; c += VL) {
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
            for (int q = 0; q < P; ++q) store(out + c + (p * P + q) * plane, r[q]);
        }
    }
}

// out[P * P][block][channels] = `transform`, from IN to P values along both axes, of the squares at tile * step + offset
// of a band. scale: a factor for each image of the band, or null.
template <int IN, int P, void (*transform)(const vf*, vf*)>
static void transform_tiles(const Band& band, const Tiles& tiles, int t0, int count, int block, int step, int offset,
                            const float* scale, float* out) {
    const int channels = band.channels;
    const int64_t plane = plane_floats(block, channels), line = int64_t(band.columns) * channels;
    const float* zeros = nullptr;
    for (int t = 0; t < count; ++t) {
        const int image = tiles.image(t0 + t);
        const int row = tiles.row(t0 + t) * step + offset, column = tiles.column(t0 + t) * step + offset;
        const float factor = scale ? scale[image] : 1.0f;
        float* to = out + int64_t(t) * channels;
        if (band.holds(row, column, IN)) {
            const float* corner = band.at(row, column) + image * band.image_step;
            transform_square<IN, P, transform>(
                [=](int i, int j) { return corner + i * line + j * channels; }, channels, factor, plane, to);
            continue;
        }
        if (!zeros) zeros = static_cast<float*>(std::memset(scratch(Slot::ZEROS, channels), 0, sizeof(float) * channels));
        const float* pixels[IN][IN];
        for (int i = 0; i < IN; ++i)
            for (int j = 0; j < IN; ++j)
                pixels[i][j] = pixel_or(band.image(image), row + i, column + j, zeros);
        transform_square<IN, P, transform>([&](int i, int j) { return pixels[i][j]; }, channels, factor, plane, to);
    }
}

// Sums of another pass that are added to the outputs of a band, float32: [image][row][column][padded channels].
struct Addend {
    const float* data;  // null: nothing is added
    int row0, columns;
    int64_t image_step;
};

// Writes the results of tiles [t0, t0 + count) to the sink, after the addend is added to them. first: the output at which
// tile 0 begins.
template <class A>
static void transform_output(const float* m, int padded, const Tiles& tiles, int t0, int count, int block, int first,
                             const Sink& sink, Images images, const Addend& add) {
    const int64_t plane = plane_floats(block, padded);
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
                        for (int i = 0; i < A::OUT; ++i) put(pixel0 + i, c, y[i]);
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
                            put(pixel0 + i, c, y[i]);
                        else
                            sink.put_outside(images.first + image, row0 + o, column0 + i, c, y[i]);
                }
            }
        }
    });
}

// Of the L2 cache, for a block's transformed inputs and products; and of memory, where a block is larger than the cache.
constexpr int64_t BLOCK_BYTES = 1 << 20, LARGE_BLOCK_BYTES = 24 << 20;

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
    const int64_t u_plane = plane_floats(block, in.channels), m_plane = plane_floats(block, padded);
    float* u = scratch(Slot::TRANSFORMED_INPUTS, values * u_plane);
    float* m = scratch(Slot::TRANSFORMED_PRODUCTS, sums * m_plane);
    int64_t a_segment[products], b_segment[products];
    for (int t0 = 0; t0 < count; t0 += block) {
        const int n = count - t0 < block ? count - t0 : block;
        transform_tiles<A::IN, A::D, A::input>(in, tiles, t0, n, block, A::STEP, in_first, nullptr, u);
        for (int q = 0; q < sums; ++q)
            for (int n0 = 0, width; n0 < padded; n0 += width) {
                width = panel_width(n0, padded);
                for (int s = 0; s < terms.count[q]; ++s) {
                    a_segment[s] = terms.value[q][s] * u_plane;
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
        transform_output<A>(m, padded, tiles, t0, n, block, out_first, sink, images, add);
    }
}

// Weight gradient of tile rows [r0, r1) in the transformed domain: sums[P * P][channels of the first][padded channels of
// the second] += u^T m, u the transformed inputs of `first`, which are read as the algorithm's inputs from in_first on, and
// m the transposed output transform of `second`. scale: a factor for each image, or null.
template <class A>
static void transform_weight_gradient(const Band& first, int in_first, const Band& second, const Sums& layout, int r0,
                                      int r1, int columns, int images, const float* scale, float* sums) {
    const Tiles tiles{r0, r1 - r0, columns, images};
    const int padded = second.channels, count = tiles.count();
    constexpr int values = A::D * A::D, gradients = A::Q * A::Q;
    const int block = block_tiles(count, int64_t(values) * first.channels + int64_t(gradients) * padded,
                                  2 * layout.size(A::P * A::P));
    const int64_t u_plane = plane_floats(block, first.channels), m_plane = plane_floats(block, padded);
    float* u = scratch(Slot::TRANSFORMED_INPUTS, values * u_plane);
    float* m = scratch(Slot::TRANSFORMED_PRODUCTS, gradients * m_plane);
    for (int t0 = 0; t0 < count; t0 += block) {
        const int n = count - t0 < block ? count - t0 : block;
        transform_tiles<A::IN, A::D, A::input>(first, tiles, t0, n, block, A::STEP, in_first, nullptr, u);
        transform_tiles<A::OUT, A::Q, A::output_adjoint>(second, tiles, t0, n, block, A::OUT, 0, scale, m);
        for (int r = 0; r < A::P; ++r)
            for (int c = 0; c < A::P; ++c) {
                Product p{};
                p.a = u + (A::VALUE[r] * A::D + A::VALUE[c]) * u_plane;
                p.a_row = 1;
                p.a_step = first.channels;
                p.b = m + (A::SUM[r] * A::Q + A::SUM[c]) * m_plane;
                p.b_step = padded;
                p.segments = 1;
                p.depth = n;
                p.c = sums + (r * A::P + c) * layout.size(1);
                p.c_row = padded;
                p.accumulate = true;
                multiply(p, layout.rows(), padded);
            }
    }
}

}  // namespace KILN_NAMESPACE
}  // namespace kiln
