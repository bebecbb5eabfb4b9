// landmark_conv on the CPU: activation(conv(image | heatmaps of landmarks) + bias), dense NHWC tensors, float32 sums.
// The image's part is a product over its few channels, band by band of output rows; a landmark's part is the sum of its
// stamp, the convolution of one small Gaussian, into the rows of the band it reaches.
#include "../_cpu/gaussian.h"
#include "../_cpu/gemm.h"
#include "../_cpu/parallel.h"
#include "../_cpu/tensors.h"

namespace kiln {
namespace KILN_NAMESPACE {

static inline int floor_div(int a, int b) { return a >= 0 ? a / b : -((b - 1 - a) / b); }
static inline int ceil_div(int a, int b) { return -floor_div(-a, b); }
static inline int larger(int a, int b) { return a > b ? a : b; }
static inline int smaller(int a, int b) { return a < b ? a : b; }

// The sizes and options of a call. SIZES: as its arguments declare them.
#define SIZES \
    Integer dtype, subpixel, activation, batch; \
    Size stride, padding, radius, count, channels, height, width, kh, kw, cout, out_h, out_w; \
    Real sigma, negative_slope;
struct Conv {
    Dtype dtype;
    int stride, padding;
    Gaussian gaussian;
    Activation activation;
    int64_t batch;
    int count, channels, height, width, kh, kw, cout, out_h, out_w;
    float slope;

    template <class A>
    explicit Conv(const A& a)
        : dtype(Dtype(a.dtype)), stride(a.stride), padding(a.padding),
          gaussian{a.subpixel != 0, a.radius, float(a.sigma)}, activation(Activation(a.activation)), batch(a.batch),
          count(a.count), channels(a.channels), height(a.height), width(a.width), kh(a.kh), kw(a.kw), cout(a.cout),
          out_h(a.out_h), out_w(a.out_w), slope(float(a.negative_slope)) {}

    int padded() const { return round_up(cout, VL); }
    int depth() const { return kw * channels; }  // one kernel row of the image's part: neighbours in memory
    int wide() const { return round_up(kh * depth(), VL); }
    int64_t kernel() const { return int64_t(kh) * kw * padded(); }
};

// Bands of output rows: a band is an image, or the part of an image that fits the cache and gives every thread work.
struct Bands {
    int height, count;
    Bands(const Conv& c, int threads) {
        const int64_t fit = (1 << 20) / (4ll * c.padded() * c.out_w);
        const int least = c.batch ? int((threads + c.batch - 1) / c.batch) : 1;
        count = larger(least, int((c.out_h + larger(4, int(fit)) - 1) / larger(4, int(fit))));
        height = (c.out_h + count - 1) / count;
        count = (c.out_h + height - 1) / height;
    }
};

// --- one axis of a stamp: which outputs see the pixels of its support, through which kernel taps ---

struct Reach {
    Support in;
    int low, high;  // outputs [low, high]; none where low > high
    int stride, padding, taps;

    Reach(const Conv& c, int taps, const Support& s, int first, int end)
        : in(s), low(larger(ceil_div(s.first + c.padding - taps + 1, c.stride), first)),
          high(smaller(floor_div(s.last + c.padding, c.stride), end - 1)), stride(c.stride), padding(c.padding),
          taps(taps) {}

    bool empty() const { return in.empty() || low > high; }
    int size() const { return high - low + 1; }
    // taps [first, last] of output o that meet the support, and the place in the support of the first tap's pixel
    int first_tap(int o) const { return larger(0, in.first - o * stride + padding); }
    int last_tap(int o) const { return smaller(taps - 1, in.last - o * stride + padding); }
    int place(int o, int tap) const { return o * stride - padding + tap - in.first; }
    // outputs that meet the support with this tap
    int first_output(int tap) const { return larger(low, ceil_div(in.first + padding - tap, stride)); }
    int last_output(int tap) const { return smaller(high, floor_div(in.last + padding - tap, stride)); }
};

// --- weighted sums of rows: out[i] (+)= sum over k < n of factor[k * factor_step] * in[k * step + i] ---

template <int N>
static inline void weigh_few(float* out, const float* in, int64_t step, const float* factor, int factor_step,
                             int64_t floats, bool accumulate) {
    vf f[N];
    for (int k = 0; k < N; ++k) f[k] = splat(factor[k * factor_step]);
    for (int64_t i = 0; i < floats; i += VL) {
        vf sum = f[0] * load(in + i);
#pragma GCC unroll 8
        for (int k = 1; k < N; ++k) sum += f[k] * load(in + k * step + i);
        store(out + i, accumulate ? load(out + i) + sum : sum);
    }
}

// `floats` is a multiple of VL.
static void weigh(float* out, const float* in, int64_t step, const float* factor, int factor_step, int n,
                  int64_t floats, bool accumulate) {
    if (n <= 0) {
        if (!accumulate) std::memset(out, 0, sizeof(float) * floats);
        return;
    }
    for (; n > 7; n -= 7, in += 7 * step, factor += 7 * factor_step, accumulate = true)
        weigh_few<7>(out, in, step, factor, factor_step, floats, accumulate);
    switch (n) {
    case 1: return weigh_few<1>(out, in, step, factor, factor_step, floats, accumulate);
    case 2: return weigh_few<2>(out, in, step, factor, factor_step, floats, accumulate);
    case 3: return weigh_few<3>(out, in, step, factor, factor_step, floats, accumulate);
    case 4: return weigh_few<4>(out, in, step, factor, factor_step, floats, accumulate);
    case 5: return weigh_few<5>(out, in, step, factor, factor_step, floats, accumulate);
    case 6: return weigh_few<6>(out, in, step, factor, factor_step, floats, accumulate);
    default: return weigh_few<7>(out, in, step, factor, factor_step, floats, accumulate);
    }
}

static inline void add(float* out, const float* in, int64_t n, float scale) {  // n is a multiple of VL
    for (int64_t i = 0; i < n; i += VL) store(out + i, load(out + i) + load(in + i) * scale);
}

static inline float dot(const float* a, const float* b, int64_t n) {
    vf sum = splat(0.0f);
    for (int64_t i = 0; i < n; i += VL) sum += load(a + i) * load(b + i);
    return sum_lanes(sum);
}

// --- a stamp, separably: the kernel meets the Gaussian along x, then along y ---

// The kernel met by the Gaussian along x: t[p][column][padded]; w is the landmark's kernel, [kh][kw][padded].
static void spread_columns(const Conv& c, const float* w, const Reach& columns, const float* along_x, float* t) {
    const int padded = c.padded();
    for (int v = columns.low; v <= columns.high; ++v) {
        const int q = columns.first_tap(v), n = columns.last_tap(v) - q + 1;
        for (int p = 0; p < c.kh; ++p)
            weigh(t + (int64_t(p) * columns.size() + v - columns.low) * padded, w + (p * c.kw + q) * padded, padded,
                  along_x + columns.place(v, q), 1, n, padded, false);
    }
}

// Adds the stamp, these columns met by the Gaussian along y, to the rows of `to` that it reaches.
static void spread_rows(const Conv& c, const Reach& rows, const Reach& columns, const float* along_y, const float* t,
                        const Band& to) {
    const int64_t line = int64_t(columns.size()) * c.padded();
    for (int u = rows.low; u <= rows.high; ++u) {
        const int p = rows.first_tap(u), n = rows.last_tap(u) - p + 1;
        weigh(to.at(u, columns.low), t + p * line, line, along_y + rows.place(u, p), 1, n, line, true);
    }
}

// The adjoint of spread_rows: t[p][column][padded] = sum over rows of along_y * delta.
static void gather_rows(const Conv& c, const Reach& rows, const Reach& columns, const float* along_y, const Band& delta,
                        float* t) {
    const int64_t line = int64_t(columns.size()) * c.padded();
    for (int p = 0; p < c.kh; ++p) {
        const int u = rows.first_output(p), n = rows.last_output(p) - u + 1;
        const float* factors = n > 0 ? along_y + rows.place(u, p) : along_y;
        const int64_t step = int64_t(delta.columns) * delta.channels;
        weigh(t + p * line, delta.at(u, columns.low), step, factors, c.stride, n, line, false);
    }
}

// The adjoint of spread_columns: the gradient of the kernel, [kh][kw][padded].
static void gather_columns(const Conv& c, const Reach& columns, const float* along_x, const float* t, float* kernel) {
    const int padded = c.padded();
    for (int q = 0; q < c.kw; ++q) {
        const int v = columns.first_output(q), n = columns.last_output(q) - v + 1;
        const float* factors = n > 0 ? along_x + columns.place(v, q) : along_x;
        for (int p = 0; p < c.kh; ++p) {
            const float* from = t + (int64_t(p) * columns.size() + v - columns.low) * padded;
            weigh(kernel + (p * c.kw + q) * padded, from, padded, factors, c.stride, n, padded, false);
        }
    }
}

// --- integer centres: a stamp that no border cuts is the same in every image, up to the centre's place in a stride ---

struct Stamps {
    bool used;
    int rows, columns;  // of the largest stamp
    int64_t size;
    float* data;

    explicit Stamps(const Conv& c)
        : rows((2 * c.gaussian.radius + c.kh - 1) / c.stride + 1),
          columns((2 * c.gaussian.radius + c.kw - 1) / c.stride + 1),
          size(int64_t(rows) * columns * c.padded()), data(nullptr) {
        // to form stamps pays when each is used more than once and all of them stay near the cache
        const double all = double(variants(c)) * rows * columns * c.padded() * c.count;  // more than an int64 holds
        used = !c.gaussian.subpixel && c.batch > 2 * variants(c) && all <= 2 << 20;
    }
    static int variants(const Conv& c) { return c.stride * c.stride; }
    int64_t floats(const Conv& c) const { return variants(c) * size * c.count; }

    // The support of the stamp centred at `pixel`.
    static Support support(const Conv& c, int pixel) {
        return {pixel - c.gaussian.radius, pixel + c.gaussian.radius, float(pixel)};
    }
    static Reach unbounded(const Conv& c, int taps, int pixel) {
        return {c, taps, support(c, pixel), -(1 << 28), 1 << 28};
    }
    bool fits(const Conv& c, const Support& y, const Support& x) const {
        return used && y.size() == 2 * c.gaussian.radius + 1 && x.size() == 2 * c.gaussian.radius + 1;
    }
    Band at(const Conv& c, int n, const Reach& rows, const Reach& columns) const {
        return at(c, n, rows.in.first + c.gaussian.radius, columns.in.first + c.gaussian.radius);
    }
    // The stamp of landmark n centred at (x, y), as a band over the outputs it reaches.
    Band at(const Conv& c, int n, int y, int x) const {
        const int variant = y % c.stride * c.stride + x % c.stride;
        float* at = data + (int64_t(n) * variants(c) + variant) * size;
        return {at, unbounded(c, c.kh, y).low, unbounded(c, c.kw, x).low, columns, c.padded()};
    }
};

// --- weights ---

// From (cout, channels + count, kh, kw): the landmarks' [landmark][p][q][padded], the image's
// [panel][p][q][channel][panel width].
static void pack_weights(const Conv& c, const float* weight, float* kernels, float* panels) {
    const int padded = c.padded(), cin = c.channels + c.count, area = c.kh * c.kw;
    for_parts(cin, [=](int64_t i) {
        for (int t = 0; t < area; ++t)
            for (int o = 0; o < padded; ++o) {
                const float value = o < c.cout ? weight[(int64_t(o) * cin + i) * area + t] : 0.0f;
                if (i >= c.channels) {
                    kernels[((i - c.channels) * area + t) * padded + o] = value;
                } else if (panels) {
                    const int n0 = panel_start(o), width = panel_width(n0, padded);
                    panels[int64_t(n0) * area * c.channels + (int64_t(t) * c.channels + i) * width + (o - n0)] = value;
                }
            }
    });
}

// For the image's gradient: [panel][cout][panel width], the columns (p, q, channel).
static void pack_adjoint(const Conv& c, const float* weight, float* out) {
    const int cin = c.channels + c.count, area = c.kh * c.kw, wide = c.wide();
    for (int n0 = 0; n0 < wide;) {
        const int width = panel_width(n0, wide);
        for (int o = 0; o < c.cout; ++o, out += width)
            for (int i = 0; i < width; ++i) {
                const int tap = (n0 + i) / c.channels, channel = (n0 + i) % c.channels;
                out[i] = tap < area ? weight[(int64_t(o) * cin + channel) * area + tap] : 0.0f;
            }
        n0 += width;
    }
}

// --- the image's part ---

// The rows of the image that outputs [o0, o1) read, times `scale`, zeros around it, channels side by side unpadded.
static Band image_band(const Conv& c, const void* image, int64_t b, float scale, int o0, int o1) {
    const int row0 = o0 * c.stride - c.padding, row1 = (o1 - 1) * c.stride - c.padding + c.kh;
    const int columns = (c.out_w - 1) * c.stride + c.kw, last = smaller(columns - c.padding, c.width);
    Band band{nullptr, row0, -c.padding, columns, c.channels};
    const int64_t line = int64_t(columns) * c.channels;
    band.data = scratch(Slot::INPUT_BAND, (row1 - row0) * line + VL);
    for (int row = row0; row < row1; ++row) {
        float* to = band.data + (row - row0) * line;
        if (row < 0 || row >= c.height || last <= 0) {
            std::memset(to, 0, sizeof(float) * line);
            continue;
        }
        const int64_t before = int64_t(c.padding) * c.channels, n = int64_t(last) * c.channels;
        std::memset(to, 0, sizeof(float) * before);
        // whole vectors are written: the floats past the pixels are overwritten by the next ones
        fill_channels(to + before, image, (b * c.height + row) * c.width * c.channels, n, c.dtype, scale);
        std::memset(to + before + n, 0, sizeof(float) * (line - before - n));
    }
    return band;
}

// Output row o of the image's part into `to`, out_w x padded.
static void image_row(const Conv& c, const Band& in, const float* panels, int o, float* to) {
    const int padded = c.padded();
    int64_t a_segment[8], b_segment[8];
    for (int p = 0; p < c.kh; ++p) a_segment[p] = int64_t(p) * in.columns * c.channels;
    Product product{};
    product.a = in.at(o * c.stride - c.padding, -c.padding);
    product.a_row = int64_t(c.stride) * c.channels;
    product.a_step = 1;
    product.segments = c.kh;
    product.a_segment = a_segment;
    product.b_segment = b_segment;
    product.depth = c.depth();
    product.c_row = padded;
    for (int n0 = 0; n0 < padded;) {
        const int width = panel_width(n0, padded);
        for (int p = 0; p < c.kh; ++p) b_segment[p] = int64_t(p) * c.depth() * width;
        product.b = panels + int64_t(n0) * c.kh * c.depth();
        product.b_step = width;
        product.c = to + n0;
        multiply_panel(product, c.out_w, width);
        n0 += width;
    }
}

// sums[p][q][channel][padded] += the image's weight gradient of output row o.
static void image_weight_gradient(const Conv& c, const Band& in, const Band& delta, int o, float* sums) {
    const int padded = c.padded();
    Product product{};
    product.a_row = 1;
    product.a_step = int64_t(c.stride) * c.channels;
    product.b = delta.at(o, 0);
    product.b_step = padded;
    product.segments = 1;
    product.depth = c.out_w;
    product.c_row = padded;
    product.accumulate = true;
    for (int p = 0; p < c.kh; ++p) {
        product.a = in.at(o * c.stride - c.padding + p, -c.padding);
        product.c = sums + int64_t(p) * c.depth() * padded;
        multiply(product, c.depth(), padded);
    }
}

// to += from, n floats; both have room for a whole vector past the last one.
static inline void add_some(float* to, const float* from, int n) {
    int i = 0;
    for (; i + VL <= n; i += VL) store(to + i, load(to + i) + load(from + i));
    if (i == n) return;
    vi lane;
    for (int l = 0; l < VL; ++l) lane[l] = l;
    const vi kept = lane < n - i;
    store(to + i, load(to + i) + (vf)((vi)load(from + i) & kept));
}

// Rows [r0, r1) of the image's gradient, float32 sums; each output row gives to the whole window it reads.
struct ImageGradient {
    const Conv& c;
    const float* packed;
    int r0, r1;
    int64_t length;  // floats of a row, which begins with the first column of padding
    float *given, *rows;

    ImageGradient(const Conv& c, const float* packed, int r0, int r1) : c(c), packed(packed), r0(r0), r1(r1) {
        const int64_t reached = (int64_t(c.out_w) - 1) * c.stride * c.channels + c.depth();
        const int64_t padded = (int64_t(c.width) + c.padding) * c.channels;
        length = (reached > padded ? reached : padded) + VL;
        const int64_t of_row = int64_t(c.out_w) * c.wide() + VL;
        given = scratch(Slot::IMAGE_GRADIENT, of_row + (r1 - r0) * length + VL);
        rows = given + of_row;
        std::memset(rows, 0, sizeof(float) * (r1 - r0) * length);
    }

    void add_output_row(const Band& delta, int o) {
        const int wide = c.wide(), depth = c.depth(), step = c.stride * c.channels, apart = (c.out_w + 7) / 8;
        Product product{};
        product.a = delta.at(o, 0);
        product.a_row = delta.channels;
        product.a_step = 1;
        product.segments = 1;
        product.depth = c.cout;
        product.c_row = wide;
        for (int n0 = 0; n0 < wide;) {
            const int width = panel_width(n0, wide);
            product.b = packed + int64_t(n0) * c.cout;
            product.b_step = width;
            product.c = given + n0;
            multiply_panel(product, c.out_w, width);
            n0 += width;
        }
        for (int p = 0; p < c.kh; ++p) {
            const int r = o * c.stride - c.padding + p;
            if (r < r0 || r >= r1) continue;
            float* row = rows + (r - r0) * length;
            // windows of neighbours overlap: taken far apart, a sum does not wait for the sum just stored
            for (int first = 0; first < apart; ++first)
                for (int x = first; x < c.out_w; x += apart)
                    add_some(row + int64_t(x) * step, given + int64_t(x) * wide + p * depth, depth);
        }
    }

    void store_rows(int64_t b, void* result) const {
        const int64_t pixels = int64_t(c.width) * c.channels;
        for (int r = r0; r < r1; ++r) {
            const float* from = rows + (r - r0) * length + int64_t(c.padding) * c.channels;
            const int64_t to = (b * c.height + r) * pixels;
            int64_t i = 0;
            for (; i + VL <= pixels; i += VL) store_as(c.dtype, result, to + i, load(from + i));
            if (i < pixels) store_part(c.dtype, result, to + i, load(from + i), int(pixels - i));
        }
    }
};

// landmarks (batch, count, 2), weight (cout, channels + count, kh, kw), bias (cout,) or null: float32;
// image (batch, channels, height, width) or null, y (batch, cout, out_h, out_w): NHWC.
KILN_FUNCTION(landmark_conv_forward, Pointer landmarks, weight, y; Optional bias, image; SIZES) {
    const Conv c(arguments);
    const float *landmarks = arguments.landmarks, *weight = arguments.weight, *bias = arguments.bias;
    const void* image = arguments.image;
    float* y = arguments.y;  // of the call's dtype
    const int padded = c.padded();
    if (c.batch && c.channels && !image) refuse("image is missing");
    Stamps stamps(c);

    const int64_t kernels_size = c.count * c.kernel(), panels_size = c.kh * int64_t(c.depth()) * padded;
    const int64_t stamps_size = stamps.used ? stamps.floats(c) : 0;
    float* kernels = scratch(Slot::PACKED_WEIGHTS, kernels_size + panels_size + padded + stamps_size);
    float *panels = kernels + kernels_size, *padded_bias = panels + panels_size;
    stamps.data = padded_bias + padded;
    pack_weights(c, weight, kernels, panels);
    for (int o = 0; o < padded; ++o) padded_bias[o] = bias && o < c.cout ? bias[o] : 0.0f;

    const int variants = stamps.used ? Stamps::variants(c) : 0;
    for_parts(int64_t(c.count) * variants, [&](int64_t i) {
        const int n = int(i / variants), y = int(i % variants) / c.stride, x = int(i % variants) % c.stride;
        const Reach rows = Stamps::unbounded(c, c.kh, y), columns = Stamps::unbounded(c, c.kw, x);
        const Band stamp = stamps.at(c, n, y, x);
        const int64_t tall = Gaussian::room(rows.in.size()), wide = Gaussian::room(columns.in.size());
        float* along_y = scratch(Slot::GAUSSIANS, tall + wide);
        float* along_x = along_y + tall;
        c.gaussian.values(rows.in, along_y);
        c.gaussian.values(columns.in, along_x);
        std::memset(stamp.data, 0, sizeof(float) * stamps.size);
        float* t = scratch(Slot::STAMP_COLUMNS, int64_t(columns.size()) * c.kh * padded);
        spread_columns(c, kernels + n * c.kernel(), columns, along_x, t);
        spread_rows(c, rows, columns, along_y, t, stamp);
    });

    Sink sink{c.dtype, c.out_h, c.out_w, c.cout, y};
    sink.activation = c.activation, sink.slope = c.slope;
    const bool in_place = c.dtype == F32 && c.cout == padded;  // the sums are formed where the result lies
    const Bands bands(c, wanted_threads());
    for_parts<Sharing::TO_THE_NEXT>(c.batch * bands.count, [&](int64_t item) {
        const int64_t b = item / bands.count;
        const int o0 = int(item % bands.count) * bands.height, o1 = smaller(o0 + bands.height, c.out_h);
        const int64_t pixel0 = (b * c.out_h + o0) * c.out_w, pixels = int64_t(o1 - o0) * c.out_w;
        float* sums = in_place ? y + pixel0 * padded : scratch(Slot::OUTPUT_SUMS, pixels * padded);
        const Band out{sums, o0, 0, c.out_w, padded};
        const Band in = c.channels ? image_band(c, image, b, 1.0f, o0, o1) : Band{};
        for (int o = o0; o < o1; ++o) {
            if (c.channels) image_row(c, in, panels, o, out.at(o, 0));
            for (int x = 0; x < c.out_w; ++x)
                for (int i = 0; i < padded; i += VL) {
                    float* to = out.at(o, x) + i;
                    store(to, c.channels ? load(to) + load(padded_bias + i) : load(padded_bias + i));
                }
        }
        float* along_y = scratch(Slot::GAUSSIANS, Gaussian::room(c.height) + Gaussian::room(c.width));
        float* along_x = along_y + Gaussian::room(c.height);
        for (int n = 0; n < c.count; ++n) {
            const float* landmark = landmarks + (b * c.count + n) * 2;
            const Reach rows(c, c.kh, c.gaussian.support(landmark[1], c.height), o0, o1);
            const Reach columns(c, c.kw, c.gaussian.support(landmark[0], c.width), 0, c.out_w);
            if (rows.empty() || columns.empty()) continue;
            if (stamps.fits(c, rows.in, columns.in)) {
                const Band stamp = stamps.at(c, n, rows, columns);
                for (int u = rows.low; u <= rows.high; ++u)
                    add(out.at(u, columns.low), stamp.at(u, columns.low), int64_t(columns.size()) * padded, 1.0f);
                continue;
            }
            c.gaussian.values(rows.in, along_y);
            c.gaussian.values(columns.in, along_x);
            float* t = scratch(Slot::STAMP_COLUMNS, int64_t(columns.size()) * c.kh * padded);
            spread_columns(c, kernels + n * c.kernel(), columns, along_x, t);
            spread_rows(c, rows, columns, along_y, t, out);
        }
        if (in_place && c.activation == NONE) return;
        for (int64_t pixel = 0; pixel < pixels; ++pixel)
            for (int o = 0; o < padded; o += VL) sink.put(pixel0 + pixel, o, load(out.data + pixel * padded + o));
    });
}

// The parameters' gradients summed over a part of the work; they lie one after another.
struct Totals {
    int64_t image, kernels, patches, bias;  // floats of each sum
    float* data;
    float* kernels_at() const { return data + image; }
    float* patches_at() const { return kernels_at() + kernels; }
    float* bias_at() const { return patches_at() + patches; }
    int64_t size() const { return image + kernels + patches + bias; }
};

// Landmark by landmark: the gradients that rows [delta's o0, o1) of image b give to its kernel and its position.
static void landmark_gradients(const Conv& c, const float* landmarks, const float* kernels, const Stamps& stamps,
                               const Band& delta, int o0, int o1, float scale, const Totals* totals, float* moved) {
    const int padded = c.padded();
    const int64_t tall = Gaussian::room(c.height), wide = Gaussian::room(c.width);
    float* along_y = scratch(Slot::GAUSSIANS, 2 * (tall + wide));
    float *along_x = along_y + tall, *slope_y = along_x + wide, *slope_x = slope_y + tall;
    float* kernel = scratch(Slot::KERNEL_GRADIENT, c.kernel());
    for (int n = 0; n < c.count; ++n) {
        const Reach rows(c, c.kh, c.gaussian.support(landmarks[2 * n + 1], c.height), o0, o1);
        const Reach columns(c, c.kw, c.gaussian.support(landmarks[2 * n], c.width), 0, c.out_w);
        if (rows.empty() || columns.empty()) continue;
        if (totals && stamps.fits(c, rows.in, columns.in)) {
            const Band patch = stamps.at(c, n, rows, columns);
            for (int u = rows.low; u <= rows.high; ++u)
                add(patch.at(u, columns.low), delta.at(u, columns.low), int64_t(columns.size()) * padded, scale);
            continue;
        }
        float* t = scratch(Slot::STAMP_COLUMNS, int64_t(columns.size()) * c.kh * padded);
        const float* w = kernels + n * c.kernel();
        c.gaussian.values(rows.in, along_y);
        c.gaussian.values(columns.in, along_x);
        gather_rows(c, rows, columns, along_y, delta, t);
        if (totals) {
            gather_columns(c, columns, along_x, t, kernel);
            add(totals->kernels_at() + n * c.kernel(), kernel, c.kernel(), scale);
        }
        if (moved) {
            c.gaussian.slopes(columns.in, along_x, slope_x);
            gather_columns(c, columns, slope_x, t, kernel);
            moved[2 * n] = dot(kernel, w, c.kernel());
            c.gaussian.slopes(rows.in, along_y, slope_y);
            gather_rows(c, rows, columns, slope_y, delta, t);
            gather_columns(c, columns, along_x, t, kernel);
            moved[2 * n + 1] = dot(kernel, w, c.kernel());
        }
    }
}

// Forms the kernels' gradients from the summed patches and writes all gradients to (cout, channels + count, kh, kw).
static void finish_weights(const Conv& c, const Stamps& stamps, const Totals& totals, float* dw) {
    const int padded = c.padded(), area = c.kh * c.kw, cin = c.channels + c.count;
    for_parts(cin, [&](int64_t i) {
        float* sums = totals.data + i * padded;
        int64_t step = int64_t(c.channels) * padded;
        if (i >= c.channels) {
            const int n = int(i) - c.channels;
            sums = totals.kernels_at() + n * c.kernel();
            step = padded;
            float* kernel = scratch(Slot::KERNEL_GRADIENT, c.kernel());
            for (int variant = 0; stamps.used && variant < Stamps::variants(c); ++variant) {
                const int y = variant / c.stride, x = variant % c.stride;
                const Reach rows = Stamps::unbounded(c, c.kh, y), columns = Stamps::unbounded(c, c.kw, x);
                const int64_t tall = Gaussian::room(rows.in.size()), wide = Gaussian::room(columns.in.size());
                float* along_y = scratch(Slot::GAUSSIANS, tall + wide);
                float* along_x = along_y + tall;
                float* t = scratch(Slot::STAMP_COLUMNS, int64_t(columns.size()) * c.kh * padded);
                c.gaussian.values(rows.in, along_y);
                c.gaussian.values(columns.in, along_x);
                gather_rows(c, rows, columns, along_y, stamps.at(c, n, y, x), t);
                gather_columns(c, columns, along_x, t, kernel);
                add(sums, kernel, c.kernel(), 1.0f);
            }
        }
        for (int t = 0; t < area; ++t)
            for (int o = 0; o < c.cout; ++o) dw[(int64_t(o) * cin + i) * area + t] = sums[t * step + o];
    });
}

// y: null without an activation; grad: of y; grad_scale: (batch,) float32 or null. The gradients of landmarks, weight and
// bias are float32; each is null where not needed.
KILN_FUNCTION(landmark_conv_backward,
              Pointer landmarks, weight, grad; Optional image, y, grad_scale, dlandmarks, dweight, dbias, dimage; SIZES) {
    const Conv c(arguments);
    const float *landmarks = arguments.landmarks, *weight = arguments.weight, *grad_scale = arguments.grad_scale;
    const void* image = arguments.image;
    float *dlandmarks = arguments.dlandmarks, *dw = arguments.dweight, *db = arguments.dbias;
    void* dimage = arguments.dimage;
    const int padded = c.padded();
    if (c.batch && c.channels && dw && !image) refuse("image is missing");
    if (c.batch && c.activation != NONE && !arguments.y) refuse("y is missing");
    Stamps stamps(c);
    stamps.used = stamps.used && dw;

    Source gradient{c.dtype, c.out_h, c.out_w, c.cout, arguments.grad};
    if (c.activation != NONE) gradient.output = arguments.y;
    gradient.activation = c.activation, gradient.slope = c.slope;
    // whether the gradient of y can be read where it lies
    const bool in_place = c.dtype == F32 && c.cout == padded && c.activation == NONE;

    const int64_t kernels_size = c.count * c.kernel();
    float* kernels = scratch(Slot::PACKED_WEIGHTS, kernels_size + int64_t(c.cout) * c.wide());
    float* adjoint = kernels + kernels_size;
    if (dlandmarks) pack_weights(c, weight, kernels, nullptr);
    if (dimage) pack_adjoint(c, weight, adjoint);

    // each part of the work has sums of its own, which are added in the order of the parts
    const int threads = wanted_threads();
    const Bands bands(c, threads);
    const int64_t items = c.batch * bands.count, moved_size = dlandmarks ? items * c.count * 2 : 0;
    Totals all{0, 0, 0, db ? padded : 0, nullptr};
    if (dw) all.image = c.kh * int64_t(c.depth()) * padded, all.kernels = kernels_size;
    if (stamps.used) all.patches = stamps.floats(c);
    const int64_t total_size = all.size() * threads + moved_size;
    all.data = scratch(Slot::PARAMETER_SUMS, total_size + 1);
    float* moved = all.data + all.size() * threads;
    std::memset(all.data, 0, sizeof(float) * total_size);

    for_parts(threads, [&](int64_t part) {
        Totals mine = all;
        mine.data += all.size() * part;
        Stamps patches = stamps;
        patches.data = mine.patches_at();
        for (int64_t item = items * part / threads; item < items * (part + 1) / threads; ++item) {
            const int64_t b = item / bands.count;
            const int band = int(item % bands.count);
            const int o0 = band * bands.height, o1 = smaller(o0 + bands.height, c.out_h);
            // the image's rows that belong to this band
            const int r0 = smaller(o0 * c.stride, c.height);
            const int r1 = o1 == c.out_h ? c.height : smaller(o1 * c.stride, c.height);
            int d0 = o0, d1 = o1;
            if (dimage && r0 < r1) {
                d0 = larger(0, smaller(d0, ceil_div(r0 + c.padding - c.kh + 1, c.stride)));
                d1 = smaller(c.out_h, larger(d1, floor_div(r1 - 1 + c.padding, c.stride) + 1));
            }
            const Band delta = in_place ? Band{const_cast<float*>(static_cast<const float*>(gradient.data)) +
                                                   b * c.out_h * c.out_w * padded,
                                               0, 0, c.out_w, padded}
                                        : fill_band(Slot::GRADIENT_BAND, gradient, {b, 1}, nullptr, PADDED, d0, d1, 0,
                                                    c.out_w);
            const float scale = grad_scale ? grad_scale[b] : 1.0f;
            const Band in = dw && c.channels ? image_band(c, image, b, scale, o0, o1) : Band{};
            ImageGradient of_image(c, adjoint, r0, dimage ? r1 : r0);
            // the bias's sum is made of short sums: a long run of equal values drifts in float32
            constexpr int RUN = 128;
            int begun = o0;
            float* line = db ? scratch(Slot::BIAS_ROWS, padded) : nullptr;
            // one row of the gradient at a time, for all sums that read it
            for (int o = d0; o < d1; ++o) {
                if (dimage) of_image.add_output_row(delta, o);
                if (o < o0 || o >= o1) continue;
                if (in.data) image_weight_gradient(c, in, delta, o, mine.data);
                if (db) {
                    const float one = 1.0f;
                    weigh(line, delta.at(o, 0), padded, &one, 0, c.out_w, padded, o > begun);
                    if (o + 1 < o1 && int64_t(o + 1 - begun) * c.out_w < RUN) continue;
                    add(mine.bias_at(), line, padded, scale);
                    begun = o + 1;
                }
            }
            if (dimage) of_image.store_rows(b, dimage);
            if (dw || dlandmarks)
                landmark_gradients(c, landmarks + b * c.count * 2, kernels, patches, delta, o0, o1, scale,
                                   dw ? &mine : nullptr, dlandmarks ? moved + item * c.count * 2 : nullptr);
        }
    });
    add_up(all.data, all.size(), threads);
    stamps.data = all.patches_at();
    if (dw) finish_weights(c, stamps, all, dw);
    if (db) std::memcpy(db, all.bias_at(), sizeof(float) * c.cout);
    if (dlandmarks)
        for (int64_t i = 0; i < c.batch * c.count * 2; ++i) {
            float sum = 0;
            for (int band = 0; band < bands.count; ++band)
                sum += moved[(i / (2 * c.count) * bands.count + band) * c.count * 2 + i % (2 * c.count)];
            dlandmarks[i] = sum;
        }
}

}  // namespace KILN_NAMESPACE
}  // namespace kiln
