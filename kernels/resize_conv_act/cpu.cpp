// resize_conv_act on the CPU: activation(scale conv(resize(x) | second) + bias + residual), dense NHWC tensors, float32.
// Each of the three passes is a row of taps (direct.h) or a transformed product (transform.h), run band by band.
#include "../_cpu/transform.h"
#include "../_cpu/unpacked.h"

namespace kiln {
namespace KILN_NAMESPACE {

// TRANSFORMED: the algorithm of the call's kernel and stride; SMALL_TILES: that of smaller tiles, with fewer weights;
// UNPACKED: the direct sum of few pixels, over weights as they lie.
enum Form { DIRECT = 0, TRANSFORMED = 1, SMALL_TILES = 2, UNPACKED = 3 };

// One convolution pass: cell r makes the outputs r * rows + first ... from the inputs r * step + low ... r * step + high - 1.
struct Pass {
    int step, low, high, rows, first, products;
    bool direct, reversed;  // reversed: weights are packed with their taps in reverse order
    Stencil stencil;        // of a direct pass
    int kernel;
    void (*pack)(const Pass&, const Weights&, float*);
    void (*band)(const Pass&, const Band&, const Weights&, const float*, int r0, int r1, int cells, const Sink&, Images,
                 const Addend&);
    // where all tiles are transformed before the weights are packed, panel by panel: `gather` writes a band's tiles,
    // `panels` does the rest
    int values;  // of a tile and a channel in the transformed domain; 0: there is no such form
    void (*gather)(const Pass&, const Band&, const Tiles& of_band, float* u, int64_t to, int64_t tiles);
    void (*panels)(const Pass&, const float* u, int channels, const Weights&, const Tiles& all, const Sink&, Images);

    int cells(int outputs) const { return (outputs - first + rows - 1) / rows; }
    Span inputs(int r0, int r1) const { return {r0 * step + low, (r1 - 1) * step + high}; }
    Spacing spacing(const Weights& w) const { return direct && !w.thin() ? DENSE : PADDED; }
    Band read(Slot slot, const Source& source, const Weights& w, Images images, Span rows, Span columns) const {
        // a direct pass reads row by row, so what lies beside the image must lie there
        if (spacing(w) == PADDED && (!direct || source.border == ZEROS))
            return view_or_band(slot, source, images, rows.first, rows.last, columns.first, columns.last);
        return fill_band(slot, source, images, nullptr, spacing(w), rows.first, rows.last, columns.first, columns.last);
    }
};

static void direct_pack(const Pass& pass, const Weights& w, float* out) {
    with_side(pass.kernel, [&](auto side) { pack_stencil<side.VALUE>(w, pass.stencil, out); });
}

static void direct_band(const Pass& pass, const Band& in, const Weights& w, const float* packed, int r0, int r1, int cells,
                        const Sink& sink, Images images, const Addend& add) {
    const Stencil& s = pass.stencil;
    const int64_t row_floats = int64_t(cells) * s.step_out * w.padded(), cell_floats = row_floats * s.step_out;
    if (cells == 1 && r1 - r0 == 1 && !add.data && !w.thin()) {  // the images' cells are multiplied as those of one row
        float* rows = scratch(Slot::DIRECT_ROWS, cell_floats * images.count);
        wide_rows(s, in, w, packed, r0, images.count, in.image_step, rows, false);
        for (int o = 0; o < s.step_out; ++o)
            for (int i = 0; i < images.count; ++i, rows += row_floats)
                put_row(sink, images.first + i, r0 * s.step_out + o + pass.first, pass.first, s.step_out, rows, w.padded());
        return;
    }
    float* rows = scratch(Slot::DIRECT_ROWS, cell_floats);
    for (int i = 0; i < images.count; ++i) {
        const auto rows_of = [&](int r) {
            if (add.data)
                std::memcpy(rows, add.data + i * add.image_step + (r - r0) * cell_floats, sizeof(float) * cell_floats);
            return rows;
        };
        direct_rows(s, in.image(i), w, packed, r0, r1, cells, add.data != nullptr, rows_of, [&](int r) {
            for (int o = 0; o < s.step_out; ++o)
                put_row(sink, images.first + i, r * s.step_out + o + pass.first, pass.first, cells * s.step_out,
                        rows + o * row_floats, w.padded());
        });
    }
}

// kernel: the side of the weight's kernels
static Pass direct(const Stencil& s, int kernel, int first) {
    return {s.step_in, s.lowest(), s.highest() + 1, s.step_out, first, s.products(), true, false, s, kernel, direct_pack,
            direct_band, 0, nullptr, nullptr};
}

template <class A> static void transform_pack(const Pass&, const Weights& w, float* out) {
    pack<A::K>(w, combinations_of<A>(), out);
}
template <class A>
static void transform_pass(const Pass& pass, const Band& in, const Weights& w, const float* packed, int r0, int r1,
                           int cells, const Sink& sink, Images images, const Addend& add) {
    transform_band<A>(in, w, packed, pass.low, pass.first, r0, r1, cells, sink, images, add);
}
template <class A>
static void gather_tiles(const Pass& pass, const Band& in, const Tiles& tiles, float* u, int64_t to, int64_t all) {
    transform_tiles<A::IN, A::D, A::input>(in, tiles, 0, tiles.count(), A::STEP, pass.low, nullptr,
                                           TileLayout::rows(all, in.channels), u + to * in.channels);
}
template <class A>
static void panels_pass(const Pass& pass, const float* u, int channels, const Weights& w, const Tiles& all, const Sink& sink,
                        Images images) {
    transform_panels<A>(u, channels, w, all, pass.first, sink, images);
}
template <class A> static Pass transformed(int low, int first, bool reversed = false) {
    return {A::STEP, low, low + A::IN, A::OUT, first, A::P * A::P, false, reversed, {}, A::K, transform_pack<A>,
            transform_pass<A>, A::D * A::D, gather_tiles<A>, panels_pass<A>};
}

// The weight gradient. One of input and gradient is `moved` against the other, or transformed as an algorithm's inputs:
// cell r reads its rows r * step + low ... r * step + high - 1, and of the other r * fixed_step + fixed_low ...
struct WeightPass {
    int step, low, high, fixed_step, fixed_low, fixed_high, cells_h, cells_w;
    bool moves_gradient, direct;
    int taps;  // lines of combinations along an axis
    float combinations[10][MOST_TAPS];
    Sums layout;
    Stencil stencil;
    // scale: the samples' factors from the first image on, or null; a direct pass has them in its input already
    void (*band)(const WeightPass&, const Band& moved, const Band& fixed, int r0, int r1, int images, const float* scale,
                 float* sums);
    // where the tiles of all images are transformed first: `gather` writes those of a band, tile by tile from `to` on, and
    // `finish` makes the gradient of all
    int values, gradients;  // of a tile and a channel in the transformed domain
    void (*gather)(const WeightPass&, const Band& moved, const Band& fixed, int r0, int r1, int images, const float* scale,
                   const Operands&, int64_t to);
    void (*finish)(const WeightPass&, const Operands&, const WeightGradient&);

    // Whether to do so: where the sums of all kernels, which else each part of the work has of its own, fill much of a
    // cache, and the tiles do not outgrow the sums by far.
    bool gathers(int64_t tiles) const {
        const int64_t sums = layout.size(taps * taps), rows = round_up(layout.rows(), VL);
        return !direct && 4 * sums > WEIGHT_BYTES / 4 && tiles * (values * rows + gradients * layout.columns()) <= 4 * sums;
    }
    int64_t tiles(int64_t images) const { return images * cells_h * cells_w; }
    Span moved_rows(int r0, int r1) const { return {r0 * step + low, (r1 - 1) * step + high}; }
    Span fixed_rows(int r0, int r1) const { return {r0 * fixed_step + fixed_low, (r1 - 1) * fixed_step + fixed_high}; }
    Span input_rows(int r0, int r1) const { return moves_gradient ? fixed_rows(r0, r1) : moved_rows(r0, r1); }
    Span gradient_rows(int r0, int r1) const { return moves_gradient ? moved_rows(r0, r1) : fixed_rows(r0, r1); }
    // dense: the operand whose channels are scalars of the product; padded: what is read as vectors or transformed
    Spacing input_spacing() const { return direct && layout.by_output ? DENSE : PADDED; }
    Spacing gradient_spacing() const { return direct && !layout.by_output ? DENSE : PADDED; }
};

static void direct_sums(const WeightPass& pass, const Band& moved, const Band& fixed, int r0, int r1, int images,
                        const float*, float* sums) {
    // images of one cell are cells of one row
    const bool one_cell = pass.cells_w == 1 && r1 - r0 == 1;
    const int64_t moved_step = one_cell ? moved.image_step : int64_t(pass.stencil.step_in) * moved.channels;
    const int64_t fixed_step = one_cell ? fixed.image_step : fixed.channels;
    for (int i = 0; i < images; i += one_cell ? images : 1)
        direct_weight_gradient(pass.stencil, pass.moves_gradient, moved.image(i), fixed.image(i), pass.fixed_low, pass.layout,
                               r0, r1, one_cell ? images : pass.cells_w, moved_step, fixed_step, sums);
}

// first: the pixel of the operand at rest that cell 0 meets; cells along the axes.
static WeightPass direct_weights(const Stencil& s, bool moves_gradient, int first, int cells_h, int cells_w, Sums layout) {
    WeightPass p{s.step_in, s.lowest(), s.highest() + 1, 1, first, first + 1, cells_h, cells_w, moves_gradient, true,
                 s.count[0], {}, layout, s, direct_sums, 0, 0, nullptr, nullptr};
    for (int t = 0; t < s.count[0]; ++t) std::memcpy(p.combinations[t], s.taps[0][t].g, sizeof s.taps[0][t].g);
    return p;
}

template <class A>
static void transformed_sums(const WeightPass& pass, const Band& moved, const Band& fixed, int r0, int r1, int images,
                             const float* scale, float* sums) {
    transform_weight_gradient<A>(moved, pass.low, fixed, pass.layout, r0, r1, pass.cells_w, images, scale, sums);
}
template <class A>
static void gather_operands(const WeightPass& pass, const Band& moved, const Band& fixed, int r0, int r1, int images,
                            const float* scale, const Operands& all, int64_t to) {
    const Tiles tiles{r0, r1 - r0, pass.cells_w, images};
    transform_operands<A>(moved, pass.low, fixed, tiles, 0, tiles.count(), scale, all, to);
}
template <class A>
static void finish_gradient(const WeightPass& pass, const Operands& all, const WeightGradient& to) {
    gradient_of_operands<A>(all, pass.layout, pass.combinations[0], MOST_TAPS, to);
}
// low: the input of the algorithm that cell 0 begins at; height, width: of the operand that is not moved.
template <class A>
static WeightPass transformed_weights(int low, bool moves_gradient, int height, int width, int cin, int cout) {
    WeightPass p{A::STEP, low, low + A::IN, A::OUT, 0, A::OUT, (height + A::OUT - 1) / A::OUT, (width + A::OUT - 1) / A::OUT,
                 moves_gradient, false, A::P, {}, {cin, cout, !moves_gradient}, {}, transformed_sums<A>, A::D * A::D, A::Q * A::Q,
                 gather_operands<A>, finish_gradient<A>};
    for (int r = 0; r < A::P; ++r)
        for (int t = 0; t < A::K; ++t) p.combinations[r][t] = A::G[r][t];
    return p;
}

// The sizes and options of a call. SIZES: as its arguments declare them; channels, further: those of x and of second;
// up: nearest x2 before the convolution; weight_last: the weight lies in channels_last order.
#define SIZES \
    Integer dtype, activation, form, batch, up, transposed, border, weight_last; \
    Size kernel, stride, padding, channels, further, height, width, out_height, out_width, cout; \
    Real negative_slope;
struct Call {
    Dtype dtype;
    Activation activation;
    Form form;
    bool up, transposed, weight_last;
    Border border;
    int kernel, stride, padding;
    int64_t batch;
    int c1, c2, h, w, out_h, out_w, cout;
    float slope;

    template <class A>
    explicit Call(const A& a)
        : dtype(Dtype(a.dtype)), activation(Activation(a.activation)), form(Form(a.form)), up(a.up),
          transposed(a.transposed), weight_last(a.weight_last), border(Border(a.border)), kernel(a.kernel),
          stride(a.stride), padding(a.padding), batch(a.batch), c1(a.channels), c2(a.further), h(a.height), w(a.width),
          out_h(a.out_height), out_w(a.out_width), cout(a.cout), slope(float(a.negative_slope)) {
        if (kernel < 1 || kernel > MOST_TAPS || stride < 1 || stride > MOST_TAPS) refuse("no such kernel or stride");
        if (form == UNPACKED && (up || border != ZEROS)) refuse("no such form of this convolution");
    }

    int conv_h() const { return up ? 2 * h : h; }
    int conv_w() const { return up ? 2 * w : w; }
    bool second_apart() const { return c2 && up; }  // at another resolution than x
    int merged() const { return second_apart() ? c1 : c1 + c2; }
    int64_t weight_floats() const { return int64_t(cout) * (c1 + c2) * kernel * kernel; }
    int frame() const { return border == ZEROS ? 0 : padding; }  // pixels beside the image that are others' values

    Source source(const void* x, const void* second) const {
        if (batch && c2 && !second) refuse("second is missing");
        Source s{dtype, h, w, c1, x};
        s.border = border;
        if (c2 && !second_apart()) s.channels2 = c2, s.data2 = second;
        return s;
    }
    // The gradient before the activation. y: read where there is one
    Source gradient(const void* grad, const void* y) const {
        Source s{dtype, out_h, out_w, cout, grad};
        s.activation = activation, s.slope = slope;
        if (activation != NONE) s.output = y;
        return s;
    }
    Source second_source(const void* second) const { return {dtype, conv_h(), conv_w(), c2, second}; }

    // From a kernel of a contiguous weight to that of the next input channel, and of the next output channel.
    int64_t input_step() const { return int64_t(kernel) * kernel * (transposed ? cout : 1); }
    int64_t output_step() const { return int64_t(kernel) * kernel * (transposed ? 1 : c1 + c2); }

    // The weight as a matrix from channels [first, first + count) of the input to the output, or, adjoint, back.
    Weights weights(const float* data, int first, int count, bool adjoint, bool reversed) const {
        // in channels_last order the second of both axes is the last one in memory
        const int64_t input = weight_last && !transposed ? 1 : input_step();
        const int64_t output = weight_last && transposed ? 1 : output_step();
        const int64_t tap = !weight_last ? 1 : transposed ? cout : c1 + c2;
        const float *from = data + first * input, *end = data + weight_floats();
        return adjoint ? Weights{from, cout, count, output, input, tap, end, reversed}
                       : Weights{from, count, cout, input, output, tap, end, reversed};
    }
    WeightGradient weight_gradient(float* data, int first) const {
        return {data + first * input_step(), output_step(), input_step()};
    }
};

static Meeting meeting_of(const Call& c) {
    return c.transposed ? Meeting{c.kernel, c.stride, c.padding, c.h, c.w, c.c1 + c.c2, c.out_h, c.out_w, c.cout, c.weight_last}
                        : Meeting{c.kernel, c.stride, c.padding, c.out_h, c.out_w, c.cout, c.h, c.w, c.c1 + c.c2, c.weight_last};
}

// The whole batch as a dense band: of the smaller tensor a matrix, of the larger one with what is met beside it.
static Band smaller_band(Slot slot, const Meeting& m, const Source& source, Images images, const float* scale) {
    return fill_band(slot, source, images, scale, DENSE, 0, m.rows, 0, m.width);
}
static Band larger_band(Slot slot, const Meeting& m, const Source& source, Images images, const float* scale) {
    const Span rows = m.reached_rows(), columns = m.reached_columns();
    return fill_band(slot, source, images, scale, DENSE, rows.first, rows.last, columns.first, columns.last);
}
static float* columns_of(const Meeting& m, const Band& larger, int64_t images, bool tap_first) {
    float* columns = scratch(Slot::COLUMNS, m.pixels(images) * m.step());
    gather_columns(m, larger, images, tap_first, columns);
    return columns;
}

// From the larger to the smaller tensor, for these images. columns: those of all images
static void unpacked_gather(const Meeting& m, const float* columns, const float* weight, Images images, const Sink& sink) {
    const int64_t pixels = m.pixels(images.count);
    if (!pixels) return;
    const int padded = round_up(m.channels, VL), threads = wanted_threads();
    float* results = scratch(Slot::COLUMN_RESULTS, pixels * padded);
    columns += m.pixels(images.first) * m.step();
    for_parts(threads, [&](int64_t part) {
        const Span share = share_of(m.channels, DOT_COLUMNS, part, threads);
        dot_rows(m, columns, weight, pixels, share.first, share.last, results, padded);
    });
    for_parts(int64_t(images.count) * m.rows, [&](int64_t row) {
        put_row(sink, images.first + row / m.rows, int(row % m.rows), 0, m.width, results + row * m.width * padded, padded);
    });
}

// From the smaller tensor, a matrix of all images, to the larger, for these images.
static void unpacked_scatter(const Meeting& m, const float* small, const float* weight, Images images, const Sink& sink) {
    const int64_t pixels = m.pixels(images.count), step = m.step();
    const int padded = round_up(m.large_channels, VL), threads = wanted_threads();
    float* products = scratch(Slot::COLUMN_RESULTS, pixels * step);
    small += m.pixels(images.first) * m.channels;
    for_parts(threads, [&](int64_t part) {
        const Span share = share_of(m.depth(), VL, part, threads);
        multiply_rows(m, small, weight, pixels, share.first, share.last, products);
    });
    for_parts(int64_t(images.count) * m.large_rows, [&](int64_t row) {
        const int64_t image = row / m.large_rows;
        float* sums = scratch(Slot::DIRECT_ROWS, int64_t(m.large_width) * padded);
        for (int column = 0; column < m.large_width; ++column)
            scatter_columns(m, products + m.pixels(image) * step, int(row % m.large_rows), column, sums + column * padded);
        put_row(sink, images.first + image, int(row % m.large_rows), 0, m.large_width, sums, padded);
    });
}

static void unpacked_weights(const Meeting& m, const float* small, const float* columns, int64_t images, float* dw) {
    const int threads = wanted_threads();
    for_parts(threads, [&](int64_t part) {
        const Span share = share_of(m.channels, 1, part, threads);
        multiply_pixels(m, small, columns, m.pixels(images), share.first, share.last, dw);
    });
}

struct Passes {
    Pass forward, input;
    WeightPass weights;
};

// Calls body with the algorithm of a convolution that is not direct: `body` takes that at stride 1, `strided` takes
// Stride2 and Spread2.
template <class Body, class Strided> static auto with_algorithm(const Call& c, Body body, Strided strided) {
    const bool small = c.form == SMALL_TILES;
    if (c.stride == 1 && small) return body(Winograd2{});
    if (c.stride == 1)
        return c.kernel == 3 ? body(SixPoints<3>{}) : c.kernel == 4 ? body(SixPoints<4>{}) : body(SixPoints<5>{});
    if (c.kernel == 3)
        return small ? strided(Stride2<3, 2>{}, Spread2<3, 2>{}) : strided(Stride2<3, 4>{}, Spread2<3, 4>{});
    return small ? strided(Stride2<4, 2>{}, Spread2<4, 2>{}) : strided(Stride2<4, 4>{}, Spread2<4, 4>{});
}

// From the larger to the smaller tensor: y[o] = sum over t of x[stride * o - padding + t] w[t].
static Pass gather(const Call& c) {
    if (c.form == DIRECT) return direct(gathering(c.kernel, c.stride, c.padding), c.kernel, 0);
    return with_algorithm(
        c, [&](auto same) { return transformed<decltype(same)>(-c.padding, 0); },
        [&](auto stride, auto) { return transformed<decltype(stride)>(-c.padding, 0); });
}

// Its transpose, for outputs from -frame on.
static Pass scatter(const Call& c, int frame) {
    if (c.form == DIRECT) return direct(scattering(c.kernel, c.stride, c.padding, -frame), c.kernel, -frame);
    // at stride 2 the first output is one that the odd taps make
    const int first = (c.padding - frame) % 2 ? -frame : -frame - 1, low = (first + c.padding - 1) / 2;
    return with_algorithm(
        c, [&](auto same) { return transformed<decltype(same)>(c.padding - frame - (c.kernel - 1), -frame, true); },
        [&](auto, auto spread) { return transformed<decltype(spread)>(c.kernel == 4 ? low - 1 : low, first); });
}

static WeightPass weights_of(const Call& c) {
    const int cin = c.merged(), frame = c.frame();
    const Sums layout{cin, c.cout, sums_by_output(cin, c.cout)};
    if (c.up)
        return c.form == DIRECT ? direct_weights(enlarging_adjoint(), true, 0, c.h, c.w, layout)
                                : transformed_weights<NearestUp>(-1, false, c.out_h, c.out_w, cin, c.cout);
    // the smaller of input and gradient, which is not moved
    const int height = c.transposed ? c.h : c.out_h, width = c.transposed ? c.w : c.out_w;
    if (c.form != DIRECT) {
        const auto tiles = [&](auto algorithm) {
            return transformed_weights<decltype(algorithm)>(-c.padding, c.transposed, height, width, cin, c.cout);
        };
        return with_algorithm(c, tiles, [&](auto stride, auto) { return tiles(stride); });
    }
    // at the same size the taps move over the narrower tensor: over the gradient where the output has few channels
    if (c.stride == 1 && !c.transposed && !layout.by_output)
        return direct_weights(scattering(c.kernel, 1, c.padding, -frame), true, -frame, c.h + 2 * frame, c.w + 2 * frame,
                              layout);
    return direct_weights(gathering(c.kernel, c.stride, c.padding), c.transposed, 0, height, width, layout);
}

static Passes passes_of(const Call& c) {
    if (c.up && c.form == DIRECT) return {direct(enlarging(), 3, 0), direct(enlarging_adjoint(), 3, 0), weights_of(c)};
    if (c.up) return {transformed<NearestUp>(-1, 0), transformed<NearestUpAdjoint>(-1, 0), weights_of(c)};
    if (c.transposed) return {scatter(c, 0), gather(c), weights_of(c)};
    return {gather(c), scatter(c, c.frame()), weights_of(c)};
}

// How the batch is cut into work items: a band of rows of one image, or up to `images` whole images.
struct Cut {
    int64_t batch;
    int bands, images;

    // The cells of a pass, of `cells` from the first row to the last, that belong to a band.
    Span share(int cells, int band) const {
        return {int(int64_t(cells) * band / bands), int(int64_t(cells) * (band + 1) / bands)};
    }
};

// A work item's padded input and gradient fill a few hundred KiB; more where the weights, which each item reads whole, are
// more. Where there are few items, each part of the work gets equally many: a part for each thread. Images smaller than a
// band share an item.
static Cut cut_of(const Call& c, int threads) {
    const int64_t in = int64_t(c.h) * c.w * round_up(c.merged(), VL), out = int64_t(c.out_h) * c.out_w * round_up(c.cout, VL);
    const int64_t weights = 8 * c.weight_floats(), item = weights > (768 << 10) ? weights : 768 << 10;
    const int rows = c.h < c.out_h ? c.h : c.out_h, most_bands = (rows + 3) / 4;
    const int64_t fit = item / (4 * (in + out) / rows + 1);  // rows of a band
    int64_t bands = fit > 64 ? (rows + 63) / 64 : fit >= 4 ? (rows + fit / 4 * 4 - 1) / (fit / 4 * 4) : most_bands;
    if (c.batch < threads || (bands > 1 && c.batch * bands < 4 * threads)) bands = (bands + threads - 1) / threads * threads;
    if (bands > most_bands) bands = most_bands;
    Cut cut{c.batch, int(bands), 1};
    const int64_t most = 4 * fit / rows;
    if (bands == 1 && most > 1) cut.images = int(most < c.batch ? most : c.batch);
    return cut;
}

// Calls body(images, band) for the items of one of the parts, in order: its share of the bands, or of the images.
template <class Body> static void for_items(const Cut& cut, int64_t part, int parts, Body body) {
    const int64_t units = cut.batch * cut.bands, first = units * part / parts, last = units * (part + 1) / parts;
    if (first == last) return;
    const int64_t groups = (last - first + cut.images - 1) / cut.images;
    const int64_t step = (last - first + groups - 1) / groups;  // groups of nearly equal size
    for (int64_t unit = first; unit < last; unit += step) {
        const int count = int(last - unit < step ? last - unit : step);
        body(Images{unit / cut.bands, cut.bands == 1 ? count : 1}, int(unit % cut.bands));
    }
}

// All tiles of a pass, where its weights are more than they are: they are transformed first, and then each panel of the
// weights is packed once, multiplied with all of them, and forgotten.
struct AllTiles {
    const Pass& pass;
    Tiles all;
    Images images;
    int channels;
    float* u = nullptr;  // null where weights are packed first

    // rows, columns: tiles of an image
    AllTiles(const Pass& pass, const Weights& w, int rows, int columns, Images images, bool wanted)
        : pass(pass), all{0, rows, columns, images.count}, images(images), channels(round_up(w.depth, VL)) {
        if (wanted && fewer_than(w)) u = scratch(Slot::ALL_TILES, floats());
    }
    int64_t floats() const { return pass.values * plane_floats(all.count(), channels); }
    // Whether packed weights would outgrow the cache, and be more than the tiles.
    bool fewer_than(const Weights& w) const {
        const int64_t packed = packed_floats(w, pass.products);
        return pass.values && 4 * packed > WEIGHT_BYTES && floats() <= packed;
    }
    explicit operator bool() const { return u; }
    // Rows [r0, r1) of a band of some images, of which those before the first of all are left out.
    void gather(const Band& in, Images band, int r0, int r1) const {
        const int skipped = band.first < images.first ? int(images.first - band.first) : 0;
        const Tiles tiles{r0, r1 - r0, all.columns, band.count - skipped};
        const int64_t to = ((band.first + skipped - images.first) * all.rows + r0) * all.columns;
        pass.gather(pass, in.image(skipped), tiles, u, to, all.count());
    }
    void finish(const Weights& w, const Sink& sink) const { pass.panels(pass, u, channels, w, all, sink, images); }
};

// The weights of a forward pass as it reads them. Where they are kept between calls, a copy of the weight they were made
// of lies before them.
struct PackedForward {
    const Call& call;
    Pass pass, apart;
    Weights w, w2;

    PackedForward(const Call& c, const float* weight)
        : call(c), pass(passes_of(c).forward), apart(direct(gathering(c.kernel, 1, c.padding), c.kernel, 0)),
          w(c.weights(weight, 0, c.merged(), false, pass.reversed)), w2(c.weights(weight, c.c1, c.c2, false, false)) {}
    AllTiles tiles() const {
        const int rows = pass.cells(call.out_h), columns = pass.cells(call.out_w);
        return {pass, w, rows, columns, {0, int(call.batch)}, !call.second_apart()};
    }
    int64_t first() const { return packed_floats(w, pass.products); }
    int64_t floats() const { return first() + (call.second_apart() ? packed_floats(w2, apart.products) : 0); }
    int64_t source() const { return (call.weight_floats() + VL - 1) / VL * VL; }
    void pack(float* to) const {
        pass.pack(pass, w, to);
        if (call.second_apart()) apart.pack(apart, w2, to + first());
    }
};

// answer: an int64, the floats to keep of a weight, 0 where a call of these sizes reads no kept one; or, where `kept` is not
// null, whether it was made of this weight.
KILN_FUNCTION(resize_conv_act_kept, Pointer weight, answer; Optional kept; SIZES) {
    const Call call(arguments);
    const float *weight = arguments.weight, *kept = arguments.kept;
    int64_t* answer = arguments.answer;
    const PackedForward packed(call, weight);
    if (kept)
        *answer = !std::memcmp(kept, weight, sizeof(float) * call.weight_floats());
    else
        *answer = packed.tiles() ? 0 : packed.source() + packed.floats();
}

// Fills `kept` with a copy of the weight and what is packed of it.
KILN_FUNCTION(resize_conv_act_keep, Pointer weight, kept; SIZES) {
    const Call call(arguments);
    const float* weight = arguments.weight;
    float* kept = arguments.kept;
    const PackedForward packed(call, weight);
    std::memcpy(kept, weight, sizeof(float) * call.weight_floats());
    packed.pack(kept + packed.source());
}

// Room for scale and bias, filled up to whole vectors and given to `sink`, and for `further` floats after them.
// returns: where those lie
static float* per_channel(const Call& call, const float* scale, const float* bias, int64_t further, Sink& sink) {
    const int padded = round_up(call.cout, VL);
    float *biases = scratch(Slot::PACKED_WEIGHTS, 2 * padded + further), *scales = biases + padded;
    for (int c = 0; c < padded; ++c) {
        biases[c] = bias && c < call.cout ? bias[c] : 0.0f;
        if (scale) scales[c] = c < call.cout ? scale[c] : 0.0f;
    }
    sink.bias = biases, sink.scale = scale ? scales : nullptr;
    return scales + padded;
}

static void forward_unpacked(const Call& call, const Source& source, const float* weight, const Sink& sink) {
    const Meeting m = meeting_of(call);
    const Images all{0, int(call.batch)};
    if (call.transposed) {
        unpacked_scatter(m, smaller_band(Slot::INPUT_BAND, m, source, all, nullptr).data, weight, all, sink);
    } else {
        const Band larger = larger_band(Slot::INPUT_BAND, m, source, all, nullptr);
        unpacked_gather(m, columns_of(m, larger, call.batch, m.tap_first), weight, all, sink);
    }
}

// x, second (or null), residual (or null, like y), y: NHWC; weight, scale and bias (or null): float32; kept: null where the
// weights are packed for this call alone.
KILN_FUNCTION(resize_conv_act_forward, Pointer x, weight, y; Optional scale, bias, second, residual, kept; SIZES) {
    const Call call(arguments);
    const void* second = arguments.second;
    const float *scale = arguments.scale, *bias = arguments.bias, *kept = arguments.kept;
    const Source source = call.source(arguments.x, second), other = call.second_source(second);
    Sink sink{call.dtype, call.out_h, call.out_w, call.cout, arguments.y};
    sink.residual = arguments.residual, sink.activation = call.activation, sink.slope = call.slope;
    if (call.form == UNPACKED) {
        per_channel(call, scale, bias, 0, sink);
        return forward_unpacked(call, source, arguments.weight, sink);
    }

    const PackedForward forward(call, arguments.weight);
    const Pass &pass = forward.pass, &apart = forward.apart;
    const Weights &w = forward.w, &w2 = forward.w2;
    const int padded = w.padded();

    const int rows = pass.cells(call.out_h), columns = pass.cells(call.out_w), threads = wanted_threads();
    const AllTiles tiles = forward.tiles();

    float* packed_now = per_channel(call, scale, bias, kept || tiles ? 0 : forward.floats(), sink);
    if (!kept && !tiles) forward.pack(packed_now);
    const float* packed = kept ? kept + forward.source() : packed_now;
    const float* packed2 = packed + forward.first();

    const Cut cut = cut_of(call, threads);
    const auto item = [&](Images images, int band) {
        const auto [r0, r1] = cut.share(rows, band);
        if (r0 == r1) return;
        const Band in = pass.read(Slot::INPUT_BAND, source, w, images, pass.inputs(r0, r1), pass.inputs(0, columns));
        if (tiles) return tiles.gather(in, images, r0, r1);
        Addend add{};
        if (call.second_apart()) {
            const int o0 = r0 * pass.rows, o1 = r1 * pass.rows, width = columns * pass.rows;
            const Span in_rows = apart.inputs(o0, o1), in_columns = apart.inputs(0, width);
            const Band in2 = fill_band(Slot::SECOND_BAND, other, images, nullptr, apart.spacing(w2), in_rows.first,
                                       in_rows.last, in_columns.first, in_columns.last);
            const int64_t row = int64_t(width) * padded, image_step = (o1 - o0) * row;
            float* sums = scratch(Slot::SECOND_SUMS, images.count * image_step);
            for (int i = 0; i < images.count; ++i)
                direct_rows(
                    apart.stencil, in2.image(i), w2, packed2, o0, o1, width, false,
                    [&](int o) { return sums + i * image_step + (o - o0) * row; }, [](int) {});
            add = {sums, o0, width, image_step};
        }
        pass.band(pass, in, w, packed, r0, r1, columns, sink, images, add);
    };
    for_parts(threads, [&](int64_t part) { for_items(cut, part, threads, item); });
    if (tiles) tiles.finish(w, sink);
}

// Bounds of the rows (or columns) that a set of passes reads.
struct Extent {
    Span all{1 << 30, -(1 << 30)};
    void cover(Span more) {
        all.first = more.first < all.first ? more.first : all.first;
        all.last = more.last > all.last ? more.last : all.last;
    }
};

// sums[channel] += the gradient over rows [row0, row1), each image times its scale. Runs of 16 pixels are added with what
// their sum rounds off, lost[channel]: values that cancel leave a small sum of large ones.
static void bias_gradient(const Band& delta, Images images, const float* scale, int row0, int row1, int width, int padded,
                          float* sums, float* lost) {
    for (int c = 0; c < padded; c += VL) {
        vf sum = load(sums + c), rest = load(lost + c);
        for (int i = 0; i < images.count; ++i) {
            const Band gradient = delta.image(i);
            const vf factor = splat(scale ? scale[images.first + i] : 1.0f);
            for (int row = row0; row < row1; ++row) {
                for (int column = 0; column < width;) {
                    const int end = column + 16 < width ? column + 16 : width;
                    vf run = splat(0.0f);
                    for (; column < end; ++column) run += load(gradient.at(row, column) + c);
                    run *= factor;
                    const vf total = sum + run, part = total - sum;
                    rest += (sum - (total - part)) + (run - part);
                    sum = total;
                }
            }
        }
        store(sums + c, sum), store(lost + c, rest);
    }
}

// sums, lost: as `bias_gradient` leaves them
static void finish_bias_gradient(int channels, const float* sums, const float* lost, float* db) {
    for (int c = 0; c < channels; ++c)
        db[c] = sums[c] - sums[c] == 0.0f ? sums[c] + lost[c] : sums[c];  // not where it is infinite or NaN
}

// The gradients of the images before `first` are zero.
static void clear_before(const Call& call, int64_t first, void* dx, void* dsecond) {
    const int64_t element = element_size(call.dtype);
    if (dx) std::memset(dx, 0, element * first * call.h * call.w * call.c1);
    if (dsecond) std::memset(dsecond, 0, element * first * call.conv_h() * call.conv_w() * call.c2);
}

template <class A> static void backward_unpacked(const Call& call, const A& arguments) {
    const Meeting m = meeting_of(call);
    const float *weight = arguments.weight, *grad_scale = arguments.grad_scale;
    void *dx = arguments.dx, *dsecond = arguments.dsecond;
    float *dw = arguments.dweight, *db = arguments.dbias;
    const int64_t input_from = arguments.input_grad_from;
    const Images all{0, int(call.batch)}, wanted{input_from, int(call.batch - input_from)};
    const Source source = call.source(arguments.x, arguments.second), gradient = call.gradient(arguments.grad, arguments.y);
    Sink sink{call.dtype, call.h, call.w, call.c1, dx};
    sink.channels2 = call.c2, sink.data2 = dsecond;

    const Band delta = call.transposed ? larger_band(Slot::GRADIENT_BAND, m, gradient, all, nullptr)
                                       : smaller_band(Slot::GRADIENT_BAND, m, gradient, all, nullptr);
    const float* columns = nullptr;  // of the gradient, in the weight's order
    if (dx || dsecond) {
        if (call.transposed)
            unpacked_gather(m, columns = columns_of(m, delta, call.batch, m.tap_first), weight, wanted, sink);
        else
            unpacked_scatter(m, delta.data, weight, wanted, sink);
    }
    clear_before(call, input_from, dx, dsecond);
    if (dw) {
        const Band in = call.transposed ? smaller_band(Slot::INPUT_BAND, m, source, all, grad_scale)
                                        : larger_band(Slot::INPUT_BAND, m, source, all, grad_scale);
        const Band &smaller = call.transposed ? in : delta, &larger = call.transposed ? delta : in;
        if (!columns || m.tap_first) columns = columns_of(m, larger, call.batch, false);  // dw is contiguous
        unpacked_weights(m, smaller.data, columns, call.batch, dw);
    }
    if (db) {
        const int padded = round_up(call.cout, VL);
        float* sums = scratch(Slot::PARAMETER_SUMS, 2 * padded);
        std::memset(sums, 0, sizeof(float) * 2 * padded);
        bias_gradient(delta, all, grad_scale, 0, call.out_h, call.out_w, padded, sums, sums + padded);
        finish_bias_gradient(call.cout, sums, sums + padded, db);
    }
}

// x, second (or null), y (read where there is an activation), grad (of y): NHWC; weight, grad_scale (or null): float32.
// The gradients of weight and bias are float32; each gradient is null where not needed.
KILN_FUNCTION(resize_conv_act_backward,
              Pointer x, weight, y, grad; Optional second, grad_scale, dx, dsecond, dweight, dbias; SIZES
              Integer input_grad_from;) {
    const Call call(arguments);
    if (call.form == UNPACKED) return backward_unpacked(call, arguments);
    const float *weight = arguments.weight, *grad_scale = arguments.grad_scale;
    const void* second = arguments.second;
    void *dx = arguments.dx, *dsecond = arguments.dsecond;
    float *dw = arguments.dweight, *db = arguments.dbias;

    const Passes passes = passes_of(call);
    const Pass input = passes.input, apart = direct(scattering(call.kernel, 1, call.padding, 0), call.kernel, 0);
    const WeightPass& weights = passes.weights;
    const WeightPass apart_weights =
        direct_weights(gathering(call.kernel, 1, call.padding), false, 0, call.out_h, call.out_w,
                       {call.c2, call.cout, sums_by_output(call.c2, call.cout)});
    const bool split = call.second_apart();
    const bool need_input = dx || (dsecond && !split), need_apart = split && dsecond;
    const int64_t input_from = arguments.input_grad_from;  // images before this one get no gradient in x and second

    const Source source = call.source(arguments.x, second), other = call.second_source(second);
    const Source gradient = call.gradient(arguments.grad, arguments.y);

    const Weights w = call.weights(weight, 0, call.merged(), true, input.reversed);
    const Weights w2 = call.weights(weight, call.c1, call.c2, true, false);
    const int input_rows = input.cells(call.h + call.frame()), input_columns = input.cells(call.w + call.frame());
    const AllTiles input_tiles(input, w, input_rows, input_columns, {input_from, int(call.batch - input_from)},
                               need_input && !split && input_from < call.batch);
    const int64_t first = input_tiles ? 0 : packed_floats(w, input.products);
    float* packed = scratch(Slot::PACKED_WEIGHTS, first + packed_floats(w2, apart.products));
    float* packed2 = packed + first;
    if (need_input && !input_tiles) input.pack(input, w, packed);
    if (need_apart) apart.pack(apart, w2, packed2);

    Sink sink{call.dtype, call.h, call.w, call.c1, dx}, sink2{call.dtype, call.conv_h(), call.conv_w(), call.c2, dsecond};
    if (!split) sink.channels2 = call.c2, sink.data2 = dsecond;
    Frame& frame = sink.frame = {call.frame(), call.h, call.w, w.padded(), call.border};
    if (need_input && frame.size) frame.data = scratch(Slot::FRAME, call.batch * frame.pixels() * frame.padded);

    // each part of the work has sums of its own, which are added in the order of the parts
    const int padded = round_up(call.cout, VL), threads = wanted_threads();
    const Sums &layout = weights.layout, &layout2 = apart_weights.layout;
    const bool gathers = dw && weights.gathers(weights.tiles(call.batch));
    const int64_t sums_size = gathers ? 0 : layout.size(weights.taps * weights.taps);
    const int64_t sums2_size = split ? layout2.size(apart_weights.taps * apart_weights.taps) : 0;
    const int64_t of_biases = sums_size + sums2_size, sums_stride = of_biases + 2 * padded;
    float* all_sums = dw || db ? scratch(Slot::PARAMETER_SUMS, sums_stride * threads) : nullptr;
    if (all_sums) std::memset(all_sums, 0, sizeof(float) * sums_stride * threads);

    const Operands operands(gathers ? weights.tiles(call.batch) : 0, weights.values, round_up(layout.rows(), VL),
                         weights.gradients, layout.columns(), Slot::ALL_INPUTS, Slot::ALL_GRADIENTS);

    // the gradient lies dense only where every pass that reads it takes dense input
    const bool dense = !split && (!dw || weights.gradient_spacing() == DENSE) &&
                       (!need_input || input.spacing(w) == DENSE);
    const Cut cut = cut_of(call, threads);
    for_parts(threads, [&](int64_t part) {
        float* sums = all_sums ? all_sums + sums_stride * part : nullptr;
        for_items(cut, part, threads, [&](Images images, int band) {
            const Span of_input = cut.share(input_rows, band), of_weights = cut.share(weights.cells_h, band);
            const Span of_bias = cut.share(call.out_h, band);
            const bool wanted = images.first + images.count > input_from;
            const bool do_input = need_input && wanted && !of_input.empty(), do_weights = dw && !of_weights.empty();
            const bool do_apart = need_apart && wanted && !of_bias.empty();

            Extent rows, columns;
            rows.cover(of_bias), columns.cover({0, call.out_w});
            if (do_weights) {
                rows.cover(weights.gradient_rows(of_weights.first, of_weights.last));
                columns.cover(weights.gradient_rows(0, weights.cells_w));
            }
            if (do_input) {
                rows.cover(input.inputs(of_input.first, of_input.last));
                columns.cover(input.inputs(0, input_columns));
            }
            if (split && !of_bias.empty()) {
                rows.cover(apart.inputs(of_bias.first, of_bias.last));
                columns.cover(apart.inputs(0, call.out_w));
            }
            const Band delta = fill_band(Slot::GRADIENT_BAND, gradient, images, nullptr, dense ? DENSE : PADDED,
                                         rows.all.first, rows.all.last, columns.all.first, columns.all.last);
            if (do_input && input_tiles)
                input_tiles.gather(delta, images, of_input.first, of_input.last);
            else if (do_input)
                input.band(input, delta, w, packed, of_input.first, of_input.last, input_columns, sink, images, {});
            if (do_apart)
                apart.band(apart, delta, w2, packed2, of_bias.first, of_bias.last, call.out_w, sink2, images, {});
            if (do_weights) {
                const Span in_rows = weights.input_rows(of_weights.first, of_weights.last);
                const Span in_columns = weights.input_rows(0, weights.cells_w);
                // transforms read the input tensor itself: the samples' scale multiplies what they make instead
                const Band in = weights.direct
                                    ? fill_band(Slot::INPUT_BAND, source, images, grad_scale, weights.input_spacing(),
                                                in_rows.first, in_rows.last, in_columns.first, in_columns.last)
                                    : view_or_band(Slot::INPUT_BAND, source, images, in_rows.first, in_rows.last,
                                                   in_columns.first, in_columns.last);
                const float* scale = grad_scale ? grad_scale + images.first : nullptr;
                const Band &moved = weights.moves_gradient ? delta : in, &fixed = weights.moves_gradient ? in : delta;
                if (gathers)
                    weights.gather(weights, moved, fixed, of_weights.first, of_weights.last, images.count, scale, operands,
                                   weights.tiles(images.first) + int64_t(of_weights.first) * weights.cells_w);
                else
                    weights.band(weights, moved, fixed, of_weights.first, of_weights.last, images.count, scale, sums);
            }
            if (dw && split && !of_bias.empty()) {
                const Span in_rows = apart_weights.input_rows(of_bias.first, of_bias.last);
                const Span in_columns = apart_weights.input_rows(0, call.out_w);
                const Band in = fill_band(Slot::INPUT_BAND, other, images, grad_scale, apart_weights.input_spacing(),
                                          in_rows.first, in_rows.last, in_columns.first, in_columns.last);
                apart_weights.band(apart_weights, in, delta, of_bias.first, of_bias.last, images.count, nullptr,
                                   sums + sums_size);
            }
            if (db)
                bias_gradient(delta, images, grad_scale, of_bias.first, of_bias.last, call.out_w, padded,
                              sums + of_biases, sums + of_biases + padded);
        });
    });
    if (all_sums) add_up(all_sums, sums_stride, threads);
    if (input_tiles) input_tiles.finish(w, sink);
    if (need_input && frame.size)
        for_parts((call.batch - input_from) * call.h, [&](int64_t row) {
            sink.add_frame(input_from + row / call.h, int(row % call.h));
        });
    clear_before(call, input_from, dx, dsecond);
    const auto unpack = [&](const float* sums, const WeightPass& pass, int first) {
        with_side(call.kernel, [&](auto side) {
            unpack_gradient<side.VALUE>(sums, pass.layout, pass.combinations[0], pass.taps, MOST_TAPS,
                                        call.weight_gradient(dw, first));
        });
    };
    if (gathers)
        weights.finish(weights, operands, call.weight_gradient(dw, 0));
    else if (dw)
        unpack(all_sums, weights, 0);
    if (dw && split) unpack(all_sums + sums_size, apart_weights, call.c1);
    if (db) finish_bias_gradient(call.cout, all_sums + of_biases, all_sums + of_biases + padded, db);
}

}  // namespace KILN_NAMESPACE
}  // namespace kiln
