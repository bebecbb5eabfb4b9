// resize_conv_act on the CPU: activation(conv3x3(resize(x) | second) + bias), dense NHWC tensors, float32 arithmetic.
// Each of the three passes is a row of taps (direct.h) or a transformed product (transform.h), run band by band.
#include "../_cpu/transform.h"

namespace kiln {
namespace KILN_NAMESPACE {

enum Resize { SAME_SIZE = 0, UP_FIRST = 1, DOWN_AFTER = 2 };
enum Form { DIRECT = 0, TRANSFORMED = 1, LARGE_TILES = 2 };

// One convolution pass: output row r * rows ... from input rows r * step + low ... r * step + high - 1.
struct Pass {
    int step, low, high, rows, products;
    void (*pack)(const Weights&, float*);
    bool direct;
    void (*band)(const Band&, const Weights&, const float*, int r0, int r1, int cells, const Sink&, Images, const Addend&);

    bool takes_views(const Weights& w) const { return !direct || w.thin(); }
    Spacing spacing(const Weights& w) const { return takes_views(w) ? PADDED : DENSE; }
};

template <const Stencil& S> static void direct_pack(const Weights& w, float* out) { pack_stencil(w, S, out); }

template <const Stencil& S>
static void direct_band(const Band& in, const Weights& w, const float* packed, int r0, int r1, int cells, const Sink& sink,
                        Images images, const Addend& add) {
    const int64_t row_floats = int64_t(cells) * S.step_out * w.padded(), cell_floats = row_floats * S.step_out;
    float* rows = scratch(Slot::DIRECT_ROWS, cell_floats);
    for (int i = 0; i < images.count; ++i) {
        const auto rows_of = [&](int r) {
            if (add.data)
                std::memcpy(rows, add.data + i * add.image_step + (r - r0) * cell_floats, sizeof(float) * cell_floats);
            return rows;
        };
        direct_rows(S, in.image(i), w, packed, r0, r1, cells, add.data != nullptr, rows_of, [&](int r) {
            for (int o = 0; o < S.step_out; ++o)
                put_row(sink, images.first + i, r * S.step_out + o, rows + o * row_floats, w.padded());
        });
    }
}

template <class A> static void transform_pack(const Weights& w, float* out) { pack(w, A::G, A::P, A::G, A::P, out); }

template <const Stencil& S> static Pass direct() {
    return {S.step_in, S.lowest(), S.highest() + 1, S.step_out, S.products(), direct_pack<S>, true, direct_band<S>};
}
template <class A> static Pass transformed() {
    return {A::STEP, A::FIRST, A::FIRST + A::IN, A::OUT, A::P * A::P, transform_pack<A>, false, transform_band<A>};
}

// The weight gradient: cell row r reads input rows r * in_step + in_low ... and gradient rows r * g_step + g_low ...
struct WeightPass {
    int in_step, in_low, in_high, g_step, g_low, g_high;
    int x_rows;  // rows of x for one cell row
    int taps;
    float g[6][3];
    bool direct;
    // scale: the samples' factors from the first image on, or null; a direct pass has them in its input already
    void (*band)(const Band& in, const Sums&, const Band& gradient, int r0, int r1, int cells, int images,
                 const float* scale, float* sums);

    // dense: the operand whose channels are scalars of the product; padded: what is read as vectors or transformed
    Spacing input_spacing(const Sums& layout) const { return direct && layout.by_output() ? DENSE : PADDED; }
    Spacing gradient_spacing(const Sums& layout) const { return direct && !layout.by_output() ? DENSE : PADDED; }
};

template <const Stencil& S, bool ON_GRADIENT>
static void direct_sums(const Band& in, const Sums& layout, const Band& gradient, int r0, int r1, int cells, int images,
                        const float*, float* sums) {
    for (int i = 0; i < images; ++i)
        direct_weight_gradient(S, ON_GRADIENT, in.image(i), layout, gradient.image(i), r0, r1, cells, sums);
}

template <const Stencil& S, bool ON_GRADIENT> static WeightPass direct_weights() {
    WeightPass p{S.step_in, S.lowest(), S.highest() + 1, 1, 0, 1, S.step_in, S.count[0], {}, true, direct_sums<S, ON_GRADIENT>};
    if (ON_GRADIENT) p = {1, 0, 1, S.step_in, S.lowest(), S.highest() + 1, 1, S.count[0], {}, true, direct_sums<S, ON_GRADIENT>};
    for (int t = 0; t < S.count[0]; ++t) std::memcpy(p.g[t], S.taps[0][t].g, sizeof p.g[t]);
    return p;
}
template <class A> static WeightPass transformed_weights() {
    WeightPass p{A::STEP, A::FIRST, A::FIRST + A::IN, A::OUT, 0, A::OUT, A::STEP, A::P, {}, false, transform_weight_gradient<A>};
    std::memcpy(p.g, A::G, sizeof A::G);
    return p;
}

// The sizes and options of a call. SIZES: as its arguments declare them; channels, further: those of x and of second.
#define SIZES \
    Integer dtype, resize, activation, form, batch; \
    Size channels, further, height, width, cout; \
    Real negative_slope;
struct Call {
    Dtype dtype;
    Resize resize;
    Activation activation;
    Form form;
    int64_t batch;
    int c1, c2, h, w, cout;
    float slope;

    template <class A>
    explicit Call(const A& a)
        : dtype(Dtype(a.dtype)), resize(Resize(a.resize)), activation(Activation(a.activation)), form(Form(a.form)),
          batch(a.batch), c1(a.channels), c2(a.further), h(a.height), w(a.width), cout(a.cout),
          slope(float(a.negative_slope)) {}

    int conv_h() const { return resize == UP_FIRST ? 2 * h : h; }
    int conv_w() const { return resize == UP_FIRST ? 2 * w : w; }
    int out_h() const { return resize == DOWN_AFTER ? (h + 1) / 2 : conv_h(); }
    int out_w() const { return resize == DOWN_AFTER ? (w + 1) / 2 : conv_w(); }
    bool second_apart() const { return c2 && resize == UP_FIRST; }  // at another resolution than x
    int merged() const { return second_apart() ? c1 : c1 + c2; }

    Source source(const void* x, const void* second) const {
        if (batch && c2 && !second) refuse("second is missing");
        Source s{dtype, h, w, c1, x};
        if (c2 && !second_apart()) s.channels2 = c2, s.data2 = second;
        return s;
    }
    Source second_source(const void* second) const { return {dtype, conv_h(), conv_w(), c2, second}; }
    Weights weights(const float* data, bool adjoint) const { return {data, cout, c1 + c2, 0, merged(), adjoint}; }
    Weights second_weights(const float* data, bool adjoint) const { return {data, cout, c1 + c2, c1, c2, adjoint}; }
};

struct Passes {
    Pass forward, input;
    WeightPass weights;
};

// The weight gradient moves its taps over the narrower tensor: over the gradient where the output has few channels.
static WeightPass same_size_weights(int cin, int cout) {
    return Sums{cin, cout}.by_output() ? direct_weights<SAME, false>() : direct_weights<SAME_ADJOINT, true>();
}

static Passes passes_of(const Call& call) {
    const Resize resize = call.resize;
    const bool direct_form = call.form == DIRECT;
    if (resize == DOWN_AFTER && !direct_form)
        return {transformed<Down>(), transformed<DownAdjoint>(), transformed_weights<Down>()};
    if (resize == DOWN_AFTER) return {direct<DOWN>(), direct<DOWN_ADJOINT>(), direct_weights<DOWN, false>()};
    if (resize == UP_FIRST && direct_form) return {direct<UP>(), direct<UP_ADJOINT>(), direct_weights<UP_ADJOINT, true>()};
    if (resize == UP_FIRST)
        return {transformed<NearestUp>(), transformed<NearestUpAdjoint>(), transformed_weights<NearestUp>()};
    if (direct_form)
        return {direct<SAME>(), direct<SAME_ADJOINT>(), same_size_weights(call.merged(), call.cout)};
    if (call.form == LARGE_TILES)
        return {transformed<Winograd4>(), transformed<Winograd4Adjoint>(), transformed_weights<Winograd4>()};
    return {transformed<Winograd2>(), transformed<Winograd2Adjoint>(), transformed_weights<Winograd2>()};
}

static inline int cells(int outputs, int rows) { return rows ? (outputs + rows - 1) / rows : 0; }

// How the batch is cut into work items: `rows` rows of x of one image, or all rows of up to `images`.
struct Cut {
    int64_t batch;
    int rows, bands, images;  // bands of an image
};

// A work item's padded input and gradient fill a few hundred KiB, and its rows are a multiple of every form's tile. Where
// there are few items, each part of the work gets equally many: a part for each thread. Images smaller than a band share
// an item.
static Cut cut_of(const Call& call, int threads) {
    const int up = call.resize == UP_FIRST ? 4 : 1;
    const int64_t row_bytes = 4ll * call.w * (round_up(call.merged(), VL) + up * round_up(call.cout, VL));
    const int64_t fit = (768 << 10) / row_bytes, most = 4 * fit / call.h;
    Cut cut{call.batch, int(fit < 4 ? 4 : fit > 64 ? 64 : fit / 4 * 4), 1, 1};
    cut.bands = cells(call.h, cut.rows);
    if (cut.bands > threads && call.batch * cut.bands < 4 * threads) {
        cut.rows = round_up(cells(call.h, cut.bands / threads * threads), 4);
        cut.bands = cells(call.h, cut.rows);
    }
    if (cut.bands == 1 && most > 1) cut.images = int(most < call.batch ? most : call.batch);
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

// The weights of a forward pass as it reads them. Where they are kept between calls, a copy of the weight they were made
// of lies before them.
struct PackedForward {
    const Call& call;
    Pass pass, apart;
    Weights w, w2;

    PackedForward(const Call& c, const float* weight)
        : call(c), pass(passes_of(c).forward), apart(direct<SAME>()), w(c.weights(weight, false)),
          w2(c.second_weights(weight, false)) {}
    int64_t first() const { return packed_floats(w, pass.products); }
    int64_t floats() const { return first() + (call.second_apart() ? packed_floats(w2, apart.products) : 0); }
    int64_t source() const { return (int64_t(w.cout) * w.cin * 9 + VL - 1) / VL * VL; }
    void pack(float* to) const {
        pass.pack(w, to);
        if (call.second_apart()) apart.pack(w2, to + first());
    }
};

// answer: an int64, the floats to keep of a weight, or, where `kept` is not null, whether it was made of this weight.
KILN_FUNCTION(resize_conv_act_kept, Pointer weight, answer; Optional kept; SIZES) {
    const Call call(arguments);
    const float *weight = arguments.weight, *kept = arguments.kept;
    int64_t* answer = arguments.answer;
    const PackedForward packed(call, weight);
    *answer = kept ? !std::memcmp(kept, weight, sizeof(float) * packed.w.cout * packed.w.cin * 9)
                   : packed.source() + packed.floats();
}

// Fills `kept` with a copy of the weight and what is packed of it.
KILN_FUNCTION(resize_conv_act_keep, Pointer weight, kept; SIZES) {
    const Call call(arguments);
    const float* weight = arguments.weight;
    float* kept = arguments.kept;
    const PackedForward packed(call, weight);
    std::memcpy(kept, weight, sizeof(float) * packed.w.cout * packed.w.cin * 9);
    packed.pack(kept + packed.source());
}

// x, second (or null), y: NHWC; weight, bias (or null): float32; kept: null where the weights are packed for this call
// alone.
KILN_FUNCTION(resize_conv_act_forward, Pointer x, weight, y; Optional bias, second, kept; SIZES) {
    const Call call(arguments);
    const void* second = arguments.second;
    const float *bias = arguments.bias, *kept = arguments.kept;
    const PackedForward forward(call, arguments.weight);
    const Pass &pass = forward.pass, &apart = forward.apart;
    const Weights &w = forward.w, &w2 = forward.w2;
    const Source source = call.source(arguments.x, second), other = call.second_source(second);
    const int padded = w.padded();

    float* padded_bias = scratch(Slot::PACKED_WEIGHTS, padded + (kept ? 0 : forward.floats()));
    if (!kept) forward.pack(padded_bias + padded);
    const float* packed = kept ? kept + forward.source() : padded_bias + padded;
    const float* packed2 = packed + forward.first();
    for (int c = 0; c < padded; ++c) padded_bias[c] = bias && c < call.cout ? bias[c] : 0.0f;

    Sink sink{call.dtype, call.out_h(), call.out_w(), call.cout, arguments.y};
    sink.bias = padded_bias, sink.activation = call.activation, sink.slope = call.slope;

    const int rows = cells(call.out_h(), pass.rows), columns = cells(call.out_w(), pass.rows);
    const int x_rows = call.resize == UP_FIRST ? 1 : call.resize == DOWN_AFTER ? 2 : pass.rows;
    const int threads = wanted_threads();
    const Cut cut = cut_of(call, threads);
    const int height = cut.rows / x_rows;
    const auto item = [&](Images images, int band) {
        const int r0 = band * height, r1 = r0 + height < rows ? r0 + height : rows;
        const int low = r0 * pass.step + pass.low, high = (r1 - 1) * pass.step + pass.high;
        const int left = pass.low, right = (columns - 1) * pass.step + pass.high;
        const Band in = pass.takes_views(w)
                            ? view_or_band(Slot::INPUT_BAND, source, images, low, high, left, right)
                            : fill_band(Slot::INPUT_BAND, source, images, nullptr, DENSE, low, high, left, right);
        Addend add{};
        if (call.second_apart()) {
            const int o0 = r0 * pass.rows, o1 = r1 * pass.rows, width = columns * pass.rows;
            const Band in2 = fill_band(Slot::SECOND_BAND, other, images, nullptr, apart.spacing(w2), o0 - 1, o1 + 1, -1,
                                       width + 1);
            const int64_t row = int64_t(width) * padded, image_step = (o1 - o0) * row;
            float* sums = scratch(Slot::SECOND_SUMS, images.count * image_step);
            for (int i = 0; i < images.count; ++i)
                direct_rows(
                    SAME, in2.image(i), w2, packed2, o0, o1, width, false,
                    [&](int o) { return sums + i * image_step + (o - o0) * row; }, [](int) {});
            add = {sums, o0, width, image_step};
        }
        pass.band(in, w, packed, r0, r1, columns, sink, images, add);
    };
    for_parts(threads, [&](int64_t part) { for_items(cut, part, threads, item); });
}

// Bounds of the rows (or columns) that a set of passes reads.
struct Extent {
    int low = 1 << 30, high = -(1 << 30);
    void cover(int r0, int r1, int step, int first, int last) {
        const int from = r0 * step + first, to = (r1 - 1) * step + last;
        low = from < low ? from : low;
        high = to > high ? to : high;
    }
};

// sums[channel] += the gradient over rows [row0, row1), each image times its scale. A row in runs of 16 pixels: a long
// run of equal values drifts in float32.
static void bias_gradient(const Band& delta, Images images, const float* scale, int row0, int row1, int width, int padded,
                          float* sums) {
    for (int i = 0; i < images.count; ++i) {
        const Band gradient = delta.image(i);
        for (int c = 0; c < padded; c += VL) {
            vf sum = splat(0.0f);
            for (int row = row0; row < row1; ++row) {
                vf line = splat(0.0f);
                for (int column = 0; column < width;) {
                    const int end = column + 16 < width ? column + 16 : width;
                    vf run = splat(0.0f);
                    for (; column < end; ++column) run += load(gradient.at(row, column) + c);
                    line += run;
                }
                sum += line;
            }
            store(sums + c, load(sums + c) + sum * (scale ? scale[images.first + i] : 1.0f));
        }
    }
}

// x, second (or null), y (read where there is an activation), grad (of y): NHWC; weight, grad_scale (or null): float32.
// The gradients of weight and bias are float32; each gradient is null where not needed.
KILN_FUNCTION(resize_conv_act_backward,
              Pointer x, weight, y, grad; Optional second, grad_scale, dx, dsecond, dweight, dbias; SIZES
              Integer input_grad_from;) {
    const Call call(arguments);
    const float *weight = arguments.weight, *grad_scale = arguments.grad_scale;
    const void* second = arguments.second;
    void *dx = arguments.dx, *dsecond = arguments.dsecond;
    float *dw = arguments.dweight, *db = arguments.dbias;

    const Passes passes = passes_of(call);
    const Pass input = passes.input, apart = direct<SAME_ADJOINT>();
    const WeightPass weights = passes.weights, apart_weights = direct_weights<SAME, false>();
    const bool split = call.second_apart();
    const bool need_input = dx || (dsecond && !split), need_apart = split && dsecond;
    const int64_t input_from = arguments.input_grad_from;  // images before this one get no gradient in x and second

    const Source source = call.source(arguments.x, second), other = call.second_source(second);
    Source gradient{call.dtype, call.out_h(), call.out_w(), call.cout, arguments.grad};
    gradient.activation = call.activation, gradient.slope = call.slope;
    if (call.activation != NONE) gradient.output = arguments.y;

    const Weights w = call.weights(weight, true), w2 = call.second_weights(weight, true);
    float* packed = scratch(Slot::PACKED_WEIGHTS, packed_floats(w, input.products) + packed_floats(w2, apart.products));
    float* packed2 = packed + packed_floats(w, input.products);
    if (need_input) input.pack(w, packed);
    if (need_apart) apart.pack(w2, packed2);

    Sink sink{call.dtype, call.h, call.w, call.c1, dx}, sink2{call.dtype, call.conv_h(), call.conv_w(), call.c2, dsecond};
    if (!split) sink.channels2 = call.c2, sink.data2 = dsecond;

    // each part of the work has sums of its own, which are added in the order of the parts
    const int padded = round_up(call.cout, VL), threads = wanted_threads(), merged = call.merged();
    const Sums layout{merged, call.cout}, layout2{call.c2, call.cout};
    const int64_t sums_size = layout.size(weights.taps * weights.taps), sums2_size = split ? layout2.size(9) : 0;
    const int64_t sums_stride = sums_size + sums2_size + padded;
    float* all_sums = dw || db ? scratch(Slot::PARAMETER_SUMS, sums_stride * threads) : nullptr;
    if (all_sums) std::memset(all_sums, 0, sizeof(float) * sums_stride * threads);

    // the gradient lies dense only where every pass that reads it takes dense input
    const bool dense = !split && weights.gradient_spacing(layout) == DENSE &&
                       (!need_input || input.spacing(w) == DENSE);
    const Cut cut = cut_of(call, threads);
    for_parts(threads, [&](int64_t part) {
        float* sums = all_sums ? all_sums + sums_stride * part : nullptr;
        for_items(cut, part, threads, [&](Images images, int band) {
            const int x0 = band * cut.rows, x1 = x0 + cut.rows < call.h ? x0 + cut.rows : call.h;
            const int i0 = x0 / input.rows, i1 = cells(x1, input.rows), i_columns = cells(call.w, input.rows);
            const int g0 = x0 / weights.x_rows, g1 = cells(x1, weights.x_rows), g_columns = cells(call.w, weights.x_rows);
            const int s0 = 2 * x0, s1 = 2 * x1, s_columns = 2 * call.w;  // of the second input, where it is apart

            Extent rows, columns;
            rows.cover(g0, g1, weights.g_step, weights.g_low, weights.g_high);
            columns.cover(0, g_columns, weights.g_step, weights.g_low, weights.g_high);
            if (need_input) {
                rows.cover(i0, i1, input.step, input.low, input.high);
                columns.cover(0, i_columns, input.step, input.low, input.high);
            }
            if (split) {
                rows.cover(s0, s1, 1, -1, 2);
                columns.cover(0, s_columns, 1, -1, 2);
            }
            const Band delta = fill_band(Slot::GRADIENT_BAND, gradient, images, nullptr, dense ? DENSE : PADDED,
                                         rows.low, rows.high, columns.low, columns.high);
            const bool wanted = images.first + images.count > input_from;
            if (need_input && wanted) input.band(delta, w, packed, i0, i1, i_columns, sink, images, {});
            if (need_apart && wanted) apart.band(delta, w2, packed2, s0, s1, s_columns, sink2, images, {});
            if (dw) {
                const int low = g0 * weights.in_step + weights.in_low;
                const int high = (g1 - 1) * weights.in_step + weights.in_high;
                const int left = weights.in_low, right = (g_columns - 1) * weights.in_step + weights.in_high;
                // transforms read the input tensor itself: the samples' scale multiplies the gradient instead
                const Band in = weights.direct
                                    ? fill_band(Slot::INPUT_BAND, source, images, grad_scale,
                                                weights.input_spacing(layout), low, high, left, right)
                                    : view_or_band(Slot::INPUT_BAND, source, images, low, high, left, right);
                const float* scale = grad_scale ? grad_scale + images.first : nullptr;
                weights.band(in, layout, delta, g0, g1, g_columns, images.count, scale, sums);
                if (split) {
                    const Band in2 = fill_band(Slot::INPUT_BAND, other, images, grad_scale,
                                               apart_weights.input_spacing(layout2), s0 - 1, s1 + 1, -1, s_columns + 1);
                    apart_weights.band(in2, layout2, delta, s0, s1, s_columns, images.count, nullptr,
                                       sums + sums_size);
                }
            }
            if (db) {
                const int o0 = call.resize == UP_FIRST ? 2 * x0 : call.resize == DOWN_AFTER ? x0 / 2 : x0;
                const int o1 = call.resize == UP_FIRST ? 2 * x1 : call.resize == DOWN_AFTER ? cells(x1, 2) : x1;
                bias_gradient(delta, images, grad_scale, o0, o1, call.out_w(), padded, sums + sums_size + sums2_size);
            }
        });
    });
    if (all_sums) add_up(all_sums, sums_stride, threads);
    const int64_t element = element_size(call.dtype);
    if (dx) std::memset(dx, 0, element * input_from * call.h * call.w * call.c1);
    if (dsecond) std::memset(dsecond, 0, element * input_from * call.conv_h() * call.conv_w() * call.c2);
    if (dw) {
        const int cin_all = call.c1 + call.c2;
        unpack_gradient(all_sums, layout, weights.g, weights.taps, 0, cin_all, dw);
        if (split) unpack_gradient(all_sums + sums_size, layout2, apart_weights.g, 3, call.c1, cin_all, dw);
    }
    if (db) std::memcpy(db, all_sums + sums_size + sums2_size, sizeof(float) * call.cout);
}

}  // namespace KILN_NAMESPACE
}  // namespace kiln
