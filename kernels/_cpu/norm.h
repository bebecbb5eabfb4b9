// Normalisation of rows and runs of elements: statistics, the normalised values with residual and activation, the sums of
// their gradients, and the gradient of the input. Rows hold an element of each channel, a run those of one domain.
#pragma once
#include "vector.h"

namespace kiln {
namespace KILN_NAMESPACE {

// Vectors next to each other of which all lanes are elements.
template <Dtype DTYPE, int COUNT> struct Whole {
    static constexpr int VECTORS = COUNT;
    vf get(const void* from, int64_t at) const { return load_as(DTYPE, from, at); }
    void put(void* to, int64_t at, vf v) const { store_as(DTYPE, to, at, v); }
    vf only(vf v) const { return v; }
};

// A vector of which the first n lanes are elements.
template <Dtype DTYPE> struct Part {
    static constexpr int VECTORS = 1;
    int n;
    vf get(const void* from, int64_t at) const { return load_part(DTYPE, from, at, n); }
    void put(void* to, int64_t at, vf v) const { store_part(DTYPE, to, at, v, n); }
    vf only(vf v) const {
        alignas(64) float lanes[VL];
        store(lanes, v);
        return load_part(F32, lanes, 0, n);
    }
};

// Calls body(column, access) for all columns of a row, COUNT vectors at a time where there are as many.
template <Dtype DTYPE, int COUNT, class Body> static inline void for_columns(int64_t width, const Body& body) {
    int64_t c = 0;
    for (; c + COUNT * VL <= width; c += COUNT * VL) body(c, Whole<DTYPE, COUNT>{});
    for (; c + VL <= width; c += VL) body(c, Whole<DTYPE, 1>{});
    if (c < width) body(c, Part<DTYPE>{int(width - c)});
}

// Calls body(column, index, access) for each vector of `rows` rows that begin at index `start`, as they lie in memory.
template <Dtype DTYPE, class Body>
static inline void for_vectors(int64_t start, int64_t rows, int64_t width, const Body& body) {
    for (int64_t r = 0; r < rows; ++r)
        for_columns<DTYPE, 4>(width, [&](int64_t first, auto access) {
            for (int64_t c = first; c < first + access.VECTORS * VL; c += VL) body(c, start + r * width + c, access);
        });
}

// The tensors of a pass, dense in one order. before, after: the residual by its place, or null. result: y, or in
// backward the gradient of x. results may be null. Kernels take it by value: no write can change what is read of it.
struct Tensors {
    const void *x, *grad, *before, *after;
    void *result, *dresidual;
    Activation activation;
    float slope;
    float* kept = nullptr;  // where a float32 pass keeps the gradient before the activation from its sums on, or null

    // The gradient before the activation is kept where it is a result anyway, and where it takes an exponential to form it
    // again; then in the place of the gradient of x.
    void keep(Dtype dtype) {
        if (dtype != F32 || !result) return;
        if (dresidual) {
            kept = static_cast<float*>(dresidual);
            dresidual = nullptr;
        } else if (activation != NONE && activation != RELU && activation != LEAKY_RELU) {
            kept = static_cast<float*>(result);
        }
    }
};

// In half precision, where conversions take longer than a branch, the activation is looked up for each vector: ANY.
constexpr Activation ANY = Activation(-1);
template <Activation KIND> static inline Activation activation_of(const Tensors& t) { return KIND == ANY ? t.activation : KIND; }

// What normalises: with d = x - mean the sum before the activation is d scale + shift, and the gradient of x is
// g scale - offset - d tilt for a gradient g of that sum. Each is an array over columns, or one number of a run.
struct Constants {
    const float *mean, *scale, *shift, *offset, *tilt;
};

// One of them, where a run's number is read once, before anything is written.
template <bool ONE> struct Constant {
    const float* of;
    vf one;

    explicit Constant(const float* values) : of(values), one(splat(ONE && values ? *values : 0.0f)) {}
    vf at(int64_t column) const { return ONE ? one : load(of + column); }
};

// The statistics of columns over some rows: each column's first element, the mean of the differences from it, and the
// sum of squared differences from the mean. A first element near the mean keeps float32 sums exact where the mean is
// large; where it lies far from the mean, what the sum of differences rounds off comes back as the rest of those from
// their mean. `first`: rows before these, already in the arrays; sums: 3 * `padded` floats to work with.
template <Dtype DTYPE>
static void column_moments(const void* x, int64_t at, int64_t rows, int64_t width, int64_t padded, int64_t first, float* sums,
                           float* origin, double* mean, double* squares) {
    float *of_squares = sums + padded, *rest = of_squares + padded;
    std::memset(sums, 0, sizeof(float) * 3 * padded);
    const auto for_all = [&](int64_t count, auto body) {
        for_vectors<DTYPE>(at, count, width, [&](int64_t c, int64_t i, auto access) { body(c, access.get(x, i)); });
    };
    if (!first) for_all(1, [=](int64_t c, vf value) { store(origin + c, value); });
    for_all(rows, [=](int64_t c, vf value) { store(sums + c, load(sums + c) + (value - load(origin + c))); });
    for (int64_t c = 0; c < width; c += VL) store(sums + c, load(sums + c) * (1.0f / float(rows)));
    for_all(rows, [=](int64_t c, vf value) {
        const vf d = value - load(origin + c) - load(sums + c);
        store(of_squares + c, load(of_squares + c) + d * d);
        store(rest + c, load(rest + c) + d);
    });
    const double share = double(rows) / double(first + rows);
    if (!first) std::memset(mean, 0, sizeof(double) * padded), std::memset(squares, 0, sizeof(double) * padded);
    for (int64_t c = 0; c < padded; ++c) {
        const double d = sums[c] + rest[c] / double(rows) - mean[c];
        squares[c] += of_squares[c] + d * d * share * double(first);
        mean[c] += d * share;
    }
}

struct Moments {
    double mean, squares;
};

// The mean of a run of up to PIECE elements and the sum of squared differences from it, as of columns.
template <Dtype DTYPE> static Moments run_moments(const void* x, int64_t at, int64_t size) {
    const float origin = load_part(DTYPE, x, at, 1)[0];
    vf sum[4] = {}, square[4] = {}, rest[4] = {};
    for_columns<DTYPE, 4>(size, [&](int64_t i, auto access) {
        for (int v = 0; v < decltype(access)::VECTORS; ++v)
            sum[v] += access.only(access.get(x, at + i + v * VL) - origin);
    });
    const float mean = sum_lanes((sum[0] + sum[1]) + (sum[2] + sum[3])) / float(size);
    for_columns<DTYPE, 4>(size, [&](int64_t i, auto access) {
        for (int v = 0; v < decltype(access)::VECTORS; ++v) {
            const vf d = access.only(access.get(x, at + i + v * VL) - origin - mean);
            square[v] += d * d;
            rest[v] += d;
        }
    });
    const float of_rest = sum_lanes((rest[0] + rest[1]) + (rest[2] + rest[3]));
    return {double(origin) + mean + double(of_rest) / double(size),
            sum_lanes((square[0] + square[1]) + (square[2] + square[3]))};
}

// result = activation(normalised x + before) + after, of `rows` rows of `width` elements.
template <Dtype DTYPE, Activation KIND, bool ONE>
static void apply(Tensors t, const Constants& k, int64_t start, int64_t rows, int64_t width) {
    const Constant<ONE> mean(k.mean), scale(k.scale), shift(k.shift);
    for_vectors<DTYPE>(start, rows, width, [&](int64_t c, int64_t at, auto access) {
        vf z = (access.get(t.x, at) - mean.at(c)) * scale.at(c) + shift.at(c);
        if (t.before) z += access.get(t.before, at);
        z = activate(activation_of<KIND>(t), z, t.slope);
        if (t.after) z += access.get(t.after, at);
        access.put(t.result, at, z);
    });
}

// The gradient before the activation, of a vector at `at` where x - mean is d.
template <Activation KIND, class Access>
static inline vf gradient_before(const Tensors& t, const Access& access, int64_t at, vf d, vf scale, vf shift) {
    const vf grad = access.get(t.grad, at);
    if (activation_of<KIND>(t) == NONE) return grad;
    vf z = d * scale + shift;
    if (t.before) z += access.get(t.before, at);
    return grad * derivative_at(activation_of<KIND>(t), z, t.slope);
}

static inline void add_lanes(double* to, vf v) {
    alignas(64) float lanes[VL];
    store(lanes, v);
    for (int i = 0; i < VL; ++i) to[i] += lanes[i];
}

// Adds for each column the sum of g and that of g (x - mean) over some rows. sums: 2 * `padded` floats to work with.
template <Dtype DTYPE, Activation KIND>
static void column_sums(Tensors t, const Constants& k, int64_t start, int64_t rows, int64_t width, int64_t padded,
                        float* sums, double* of_g, double* of_gd) {
    std::memset(sums, 0, sizeof(float) * 2 * padded);
    for_vectors<DTYPE>(start, rows, width, [&](int64_t c, int64_t at, auto access) {
        const vf d = access.get(t.x, at) - load(k.mean + c);
        const vf g = gradient_before<KIND>(t, access, at, d, load(k.scale + c), load(k.shift + c));
        if (t.kept) access.put(t.kept, at, g);
        float *sum = sums + c, *product = sum + padded;
        store(sum, load(sum) + g);
        store(product, load(product) + g * d);
    });
    for (int64_t c = 0; c < width; c += VL) add_lanes(of_g + c, load(sums + c)), add_lanes(of_gd + c, load(sums + padded + c));
}

struct Sums {
    double g, gd;
};

// The sum of g and that of g (x - mean) over a run of up to PIECE elements.
template <Dtype DTYPE, Activation KIND>
static Sums run_sums(Tensors t, const Constants& k, int64_t start, int64_t size) {
    const vf mean = splat(*k.mean), scale = splat(*k.scale), shift = splat(*k.shift);
    vf sum[2] = {}, product[2] = {};
    for_columns<DTYPE, 2>(size, [&](int64_t i, auto access) {
        for (int v = 0; v < decltype(access)::VECTORS; ++v) {
            const int64_t at = start + i + v * VL;
            const vf d = access.get(t.x, at) - mean;
            const vf g = gradient_before<KIND>(t, access, at, d, scale, shift);
            if (t.kept) access.put(t.kept, at, g);
            sum[v] += access.only(g);
            product[v] += access.only(g * d);
        }
    });
    return {sum_lanes(sum[0] + sum[1]), sum_lanes(product[0] + product[1])};
}

// The gradient of x in `result`, and that of a residual before the activation.
template <Dtype DTYPE, Activation KIND, bool ONE>
static void input_gradient(Tensors t, const Constants& k, int64_t start, int64_t rows, int64_t width) {
    const Constant<ONE> mean(k.mean), scale(k.scale), shift(k.shift), offset(k.offset), tilt(k.tilt);
    // constant statistics have no tilt: an infinite x must not make its gradient NaN
    const bool tilted = k.tilt;
    for_vectors<DTYPE>(start, rows, width, [&](int64_t c, int64_t at, auto access) {
        const vf d = access.get(t.x, at) - mean.at(c), factor = scale.at(c);
        const vf g = t.kept ? access.get(t.kept, at) : gradient_before<KIND>(t, access, at, d, factor, shift.at(c));
        if (t.dresidual) access.put(t.dresidual, at, g);
        const vf less = tilted ? offset.at(c) + d * tilt.at(c) : splat(0.0f);
        if (t.result) access.put(t.result, at, g * factor - less);
    });
}

// The functions above for a dtype and an activation, chosen once for a call.
struct Kernels {
    decltype(&column_moments<F32>) column_moments;
    decltype(&run_moments<F32>) run_moments;
    decltype(&apply<F32, NONE, false>) apply_columns, apply_run, column_gradient, run_gradient;
    decltype(&column_sums<F32, NONE>) column_sums;
    decltype(&run_sums<F32, NONE>) run_sums;
};

template <Dtype DTYPE, Activation KIND> static Kernels kernels_for() {
    return {column_moments<DTYPE>,           run_moments<DTYPE>,
            apply<DTYPE, KIND, false>,       apply<DTYPE, KIND, true>,
            input_gradient<DTYPE, KIND, false>, input_gradient<DTYPE, KIND, true>,
            column_sums<DTYPE, KIND>,        run_sums<DTYPE, KIND>};
}

static Kernels kernels_for(Dtype dtype, Activation kind) {
    if (dtype == BF16) return kernels_for<BF16, ANY>();
    if (dtype == F16) return kernels_for<F16, ANY>();
    switch (kind) {
    case ELU: return kernels_for<F32, ELU>();
    case RELU: return kernels_for<F32, RELU>();
    case LEAKY_RELU: return kernels_for<F32, LEAKY_RELU>();
    case TANH: return kernels_for<F32, TANH>();
    case SIGMOID: return kernels_for<F32, SIGMOID>();
    case SILU: return kernels_for<F32, SILU>();
    default: return kernels_for<F32, NONE>();
    }
}

}  // namespace KILN_NAMESPACE
}  // namespace kiln
