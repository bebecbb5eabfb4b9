// Convolution by products in a transformed domain: nine products for nearest x2, and Winograd for the same resolution.
#pragma once
#include "direct.h"

namespace kiln {
namespace KILN_NAMESPACE {

// Each struct below is a one-dimensional bilinear algorithm. `input` makes P values of the IN inputs from tile * STEP +
// FIRST on; value p is multiplied with combination G[p] of the three taps; `output` makes OUT results of the P
// products. SUM: the one result is the sum of the products, which are formed as one longer product. In two dimensions
// the algorithm runs along one axis, then along the other.

// Nearest x2, then 3 taps: differences of neighbours carry the outer taps, so 3 products give 2 outputs per input.
struct NearestUp {
    static constexpr int IN = 3, STEP = 1, FIRST = -1, P = 3, OUT = 2;
    static constexpr bool SUM = false;
    static constexpr float G[P][3] = {{1, 0, 0}, {1, 1, 1}, {0, 0, 1}};
    static void input(const vf* x, vf* u) {
        u[0] = x[0] - x[1];
        u[1] = x[1];
        u[2] = x[1] - x[2];
    }
    static void output(const vf* m, vf* y) {
        y[0] = m[0] + m[1];
        y[1] = m[1] - m[2];
    }
    static void output_adjoint(const vf* y, vf* m) {
        m[0] = y[0];
        m[1] = y[0] + y[1];
        m[2] = -y[1];
    }
};

// The adjoint of NearestUp: four gradients 2i-1 ... 2i+2 give one input gradient, the sum of three products.
struct NearestUpAdjoint {
    static constexpr int IN = 4, STEP = 2, FIRST = -1, P = 3, OUT = 1;
    static constexpr float G[P][3] = {{1, 0, 0}, {1, 1, 1}, {0, 0, 1}};
    static void input(const vf* x, vf* u) {
        u[0] = x[3] - x[1];
        u[1] = x[1] + x[2];
        u[2] = x[0] - x[2];
    }
    static constexpr bool SUM = true;
};

// 3 taps, then nearest /2, which is the convolution at stride 2: the inputs as they are, gathered for one long product.
struct Down {
    static constexpr int IN = 3, STEP = 2, FIRST = -1, P = 3, OUT = 1;
    static constexpr bool SUM = true;
    static constexpr float G[P][3] = {{1, 0, 0}, {0, 1, 0}, {0, 0, 1}};
    static void input(const vf* x, vf* u) {
        for (int i = 0; i < 3; ++i) u[i] = x[i];
    }
};

// The adjoint of Down: an even result is one product, an odd result is the sum of two.
struct DownAdjoint {
    static constexpr int IN = 2, STEP = 1, FIRST = 0, P = 3, OUT = 2;
    static constexpr bool SUM = false;
    static constexpr float G[P][3] = {{0, 1, 0}, {0, 0, 1}, {1, 0, 0}};
    static void input(const vf* x, vf* u) {
        u[0] = x[0];
        u[1] = x[0];
        u[2] = x[1];
    }
    static void output(const vf* m, vf* y) {
        y[0] = m[0];
        y[1] = m[1] + m[2];
    }
};

// Winograd F(2, 3).
struct Winograd2 {
    static constexpr int IN = 4, STEP = 2, FIRST = -1, P = 4, OUT = 2;
    static constexpr bool SUM = false;
    static constexpr float G[P][3] = {{1, 0, 0}, {0.5f, 0.5f, 0.5f}, {0.5f, -0.5f, 0.5f}, {0, 0, 1}};
    static void input(const vf* x, vf* u) {
        u[0] = x[0] - x[2];
        u[1] = x[1] + x[2];
        u[2] = x[2] - x[1];
        u[3] = x[1] - x[3];
    }
    static void output(const vf* m, vf* y) {
        y[0] = m[0] + m[1] + m[2];
        y[1] = m[1] - m[2] - m[3];
    }
    static void output_adjoint(const vf* y, vf* m) {
        m[0] = y[0];
        m[1] = y[0] + y[1];
        m[2] = y[0] - y[1];
        m[3] = -y[1];
    }
};

// Winograd F(2, 3) for the adjoint convolution: the taps in reverse order.
struct Winograd2Adjoint : Winograd2 {
    static constexpr float G[P][3] = {{0, 0, 1}, {0.5f, 0.5f, 0.5f}, {0.5f, -0.5f, 0.5f}, {1, 0, 0}};
};

// Winograd F(4, 3) at the points 0, +-1/sqrt 2, +-sqrt 2 and infinity. The squares of 1/sqrt 2 and sqrt 2 multiply to
// one, which keeps every coefficient near one and the rounding error an order of magnitude below that of the points 0,
// +-1, +-2.
struct Winograd4 {
    static constexpr int IN = 6, STEP = 4, FIRST = -1, P = 6, OUT = 4;
    static constexpr bool SUM = false;
    static constexpr float A = 0.70710678118654752f, B = 1.41421356237309505f;
    static constexpr float G[P][3] = {{1, 0, 0},
                                      {-2.0f / 3, -2.0f / 3 * A, -1.0f / 3},
                                      {-2.0f / 3, 2.0f / 3 * A, -1.0f / 3},
                                      {1.0f / 6, B / 6, 1.0f / 3},
                                      {1.0f / 6, -B / 6, 1.0f / 3},
                                      {0, 0, 1}};
    static void input(const vf* x, vf* u) {
        u[0] = x[0] + x[4] - 2.5f * x[2];
        const vf even_a = x[4] - 2.0f * x[2], odd_a = x[3] - 2.0f * x[1];
        u[1] = even_a + A * odd_a;
        u[2] = even_a - A * odd_a;
        const vf even_b = x[4] - 0.5f * x[2], odd_b = x[3] - 0.5f * x[1];
        u[3] = even_b + B * odd_b;
        u[4] = even_b - B * odd_b;
        u[5] = x[1] + x[5] - 2.5f * x[3];
    }
    static void output(const vf* m, vf* y) {
        const vf sum_a = m[1] + m[2], sum_b = m[3] + m[4], difference_a = m[1] - m[2], difference_b = m[3] - m[4];
        y[0] = m[0] + sum_a + sum_b;
        y[1] = A * difference_a + B * difference_b;
        y[2] = 0.5f * sum_a + 2.0f * sum_b;
        y[3] = m[5] + A * 0.5f * difference_a + B * 2.0f * difference_b;
    }
    static void output_adjoint(const vf* y, vf* m) {
        m[0] = y[0];
        const vf even_a = y[0] + 0.5f * y[2], odd_a = y[1] + 0.5f * y[3];
        m[1] = even_a + A * odd_a;
        m[2] = even_a - A * odd_a;
        const vf even_b = y[0] + 2.0f * y[2], odd_b = y[1] + 2.0f * y[3];
        m[3] = even_b + B * odd_b;
        m[4] = even_b - B * odd_b;
        m[5] = y[3];
    }
};

// Winograd F(4, 3) for the adjoint convolution: the taps in reverse order.
struct Winograd4Adjoint : Winograd4 {
    static constexpr float G[P][3] = {{0, 0, 1},
                                      {-1.0f / 3, -2.0f / 3 * A, -2.0f / 3},
                                      {-1.0f / 3, 2.0f / 3 * A, -2.0f / 3},
                                      {1.0f / 3, B / 6, 1.0f / 6},
                                      {1.0f / 3, -B / 6, 1.0f / 6},
                                      {1, 0, 0}};
};

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

// out[P * P][block][channels] = `transform`, along both axes, of the IN x IN squares at tile * step + offset of a band.
// scale: a factor for each image of the band, or null.
template <int IN, int P, void (*transform)(const vf*, vf*)>
static void transform_tiles(const Band& band, const Tiles& tiles, int t0, int count, int block, int step, int offset,
                            const float* scale, float* out) {
    const int64_t plane = plane_floats(block, band.channels);
    for (int t = 0; t < count; ++t) {
        const int image = tiles.image(t0 + t);
        const int row = tiles.row(t0 + t) * step + offset, column = tiles.column(t0 + t) * step + offset;
        const float* corner = band.at(row, column) + image * band.image_step;
        int64_t line = int64_t(band.columns) * band.channels;
        if (!band.holds(row, column, IN)) {
            float* square = scratch(Slot::SQUARE, int64_t(IN) * IN * band.channels);
            copy_square(band.image(image), row, column, IN, square);
            corner = square;
            line = int64_t(IN) * band.channels;
        }
        for (int c = 0; c < band.channels; c += VL) {
            vf rows[P][IN];
            for (int j = 0; j < IN; ++j) {
                vf x[IN], r[P];
                for (int i = 0; i < IN; ++i) x[i] = load(corner + i * line + j * band.channels + c);
                if (scale)
                    for (int i = 0; i < IN; ++i) x[i] *= scale[image];
                transform(x, r);
                for (int p = 0; p < P; ++p) rows[p][j] = r[p];
            }
            float* to = out + int64_t(t) * band.channels + c;
            for (int p = 0; p < P; ++p) {
                vf r[P];
                transform(rows[p], r);
                for (int q = 0; q < P; ++q) store(to + (p * P + q) * plane, r[q]);
            }
        }
    }
}

template <class A> static void transform_input(const Band& in, const Tiles& tiles, int t0, int n, int block, float* u) {
    transform_tiles<A::IN, A::P, A::input>(in, tiles, t0, n, block, A::STEP, A::FIRST, nullptr, u);
}

static inline void as_it_is(const vf* x, vf* u) { u[0] = x[0]; }

// The adjoint of the output transform, of the OUT x OUT gradients of each tile. Where the output is a SUM, every
// product has the same gradient, which is stored once.
template <class A>
static void transform_gradient(const Band& gradient, const Tiles& tiles, int t0, int n, int block, const float* scale,
                               float* m) {
    if constexpr (A::SUM)
        transform_tiles<1, 1, as_it_is>(gradient, tiles, t0, n, block, 1, 0, scale, m);
    else
        transform_tiles<A::OUT, A::P, A::output_adjoint>(gradient, tiles, t0, n, block, A::OUT, 0, scale, m);
}

// Sums of another pass that are added to the outputs of a band, float32: [image][row][column][padded channels].
struct Addend {
    const float* data;  // null: nothing is added
    int row0, columns;
    int64_t image_step;
};

// Writes the results of tiles [t0, t0 + count) to the sink, after the addend is added to them.
template <class A>
static void transform_output(const float* m, int padded, const Tiles& tiles, int t0, int count, int block,
                             const Sink& sink, Images images, const Addend& add) {
    const int64_t plane = plane_floats(block, padded);
    with_put(sink, [&](auto put) {
        for (int t = 0; t < count; ++t) {
            const int row0 = tiles.row(t0 + t) * A::OUT, column0 = tiles.column(t0 + t) * A::OUT;
            const int image = tiles.image(t0 + t);
            const int rows = sink.height - row0 < A::OUT ? sink.height - row0 : A::OUT;
            const int columns = sink.width - column0 < A::OUT ? sink.width - column0 : A::OUT;
            const int64_t pixel0 = ((images.first + image) * sink.height + row0) * sink.width + column0;
            for (int c = 0; c < padded; c += VL) {
                const float* from = m + int64_t(t) * padded + c;
                vf part[A::OUT][A::P];
                for (int q = 0; q < A::P; ++q) {
                    vf x[A::P], y[A::OUT];
                    for (int p = 0; p < A::P; ++p) x[p] = load(from + (p * A::P + q) * plane);
                    A::output(x, y);
                    for (int o = 0; o < A::OUT; ++o) part[o][q] = y[o];
                }
                for (int o = 0; o < rows; ++o) {
                    vf y[A::OUT];
                    A::output(part[o], y);
                    if (add.data) {
                        const float* more = add.data + image * add.image_step + c +
                                            (int64_t(row0 + o - add.row0) * add.columns + column0) * padded;
                        for (int i = 0; i < columns; ++i) y[i] += load(more + int64_t(i) * padded);
                    }
                    for (int i = 0; i < columns; ++i) put(pixel0 + int64_t(o) * sink.width + i, c, y[i]);
                }
            }
        }
    });
}

constexpr int64_t BLOCK_BYTES = 896 << 10;  // of the L2 cache, for a block's transformed inputs and products

// Tiles of a block: as many as BLOCK_BYTES hold, from 28 to 112, in blocks of nearly equal size.
static inline int block_tiles(int tiles, int products, int channels_in, int channels_out) {
    const int fit = int(BLOCK_BYTES / (int64_t(4) * products * (channels_in + channels_out)));
    const int most = fit < 28 ? 28 : fit > 112 ? 112 : fit, blocks = (tiles + most - 1) / most;
    return (tiles + blocks - 1) / blocks;
}

// Writes the results of tiles that are single pixels to the sink.
static void put_tiles(const float* m, int padded, const Tiles& tiles, int t0, int count, const Sink& sink, Images images) {
    with_put(sink, [&](auto put) {
        for (int t = 0; t < count; ++t) {
            const int64_t row = (images.first + tiles.image(t0 + t)) * sink.height + tiles.row(t0 + t);
            for (int c = 0; c < padded; c += VL)
                put(row * sink.width + tiles.column(t0 + t), c, load(m + int64_t(t) * padded + c));
        }
    });
}

// Runs a convolution pass on tile rows [r0, r1) of a band.
template <class A>
static void transform_band(const Band& in, const Weights& w, const float* packed, int r0, int r1, int columns,
                           const Sink& sink, Images images, const Addend& add) {
    const Tiles tiles{r0, r1 - r0, columns, images.count};
    const int depth = w.depth(), padded = w.padded(), count = tiles.count();
    constexpr int products = A::P * A::P;
    const int block = block_tiles(count, products, in.channels, padded);
    const int64_t u_plane = plane_floats(block, in.channels), m_plane = plane_floats(block, padded);
    float* u = scratch(Slot::TRANSFORMED_INPUTS, products * u_plane);
    float* m = scratch(Slot::TRANSFORMED_PRODUCTS, (A::SUM ? 1 : products) * m_plane);
    int64_t a_segment[products], b_segment[products];
    for (int t0 = 0; t0 < count; t0 += block) {
        const int n = count - t0 < block ? count - t0 : block;
        transform_input<A>(in, tiles, t0, n, block, u);
        // each product apart, or with A::SUM all of them as one long product
        for (int q = 0; q < products; q += A::SUM ? products : 1)
            for (int n0 = 0; n0 < padded;) {
                const int width = panel_width(n0, padded);
                Product p{};
                p.a = u + q * u_plane;
                p.a_row = in.channels;
                p.a_step = 1;
                p.b = packed + (int64_t(n0) * products + int64_t(q) * width) * depth;
                p.b_step = width;
                p.segments = A::SUM ? products : 1;
                p.depth = depth;
                p.c = m + q * m_plane + n0;
                p.c_row = padded;
                if (A::SUM) {
                    for (int s = 0; s < products; ++s)
                        a_segment[s] = s * u_plane, b_segment[s] = int64_t(s) * width * depth;
                    p.a_segment = a_segment;
                    p.b_segment = b_segment;
                }
                multiply_panel(p, n, width);
                n0 += width;
            }
        if constexpr (A::SUM)
            put_tiles(m, padded, tiles, t0, n, sink, images);
        else
            transform_output<A>(m, padded, tiles, t0, n, block, sink, images, add);
    }
}

// Weight gradient of one band in the transformed domain: sums[P * P][cin][padded cout] += u^T m, u the transformed
// inputs and m the transformed gradients; cout is never thin. scale: a factor for each image of the band, or null.
template <class A>
static void transform_weight_gradient(const Band& in, const Sums& layout, const Band& gradient, int r0, int r1,
                                      int columns, int images, const float* scale, float* sums) {
    const Tiles tiles{r0, r1 - r0, columns, images};
    const int cin = layout.cin, padded = gradient.channels, count = tiles.count();
    constexpr int products = A::P * A::P;
    const int block = block_tiles(count, products, in.channels, padded);
    const int64_t u_plane = plane_floats(block, in.channels), m_plane = plane_floats(block, padded);
    float* u = scratch(Slot::TRANSFORMED_INPUTS, products * u_plane);
    float* m = scratch(Slot::TRANSFORMED_PRODUCTS, products * m_plane);
    for (int t0 = 0; t0 < count; t0 += block) {
        const int n = count - t0 < block ? count - t0 : block;
        transform_input<A>(in, tiles, t0, n, block, u);
        transform_gradient<A>(gradient, tiles, t0, n, block, scale, m);
        for (int q = 0; q < products; ++q) {
            Product p{};
            p.a = u + q * u_plane;
            p.a_row = 1;
            p.a_step = in.channels;
            p.b = m + (A::SUM ? 0 : q * m_plane);
            p.b_step = padded;
            p.segments = 1;
            p.depth = n;
            p.c = sums + int64_t(q) * cin * padded;
            p.c_row = padded;
            p.accumulate = true;
            multiply(p, cin, padded);
        }
    }
}

}  // namespace KILN_NAMESPACE
}  // namespace kiln
