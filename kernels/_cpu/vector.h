// The vector type of each instruction set, element conversions, and the activations with their derivatives.
#pragma once
#include <cstdint>
#include <cstring>

#include "registry.h"
#include "scratch.h"

namespace kiln {
namespace KILN_NAMESPACE {

#if KILN_ISA == 2
constexpr int VL = 16;  // floats in a vector
constexpr int MR = 14;  // rows of the GEMM register tile, two vectors wide
#elif KILN_ISA == 1
constexpr int VL = 8;
constexpr int MR = 6;
#else
constexpr int VL = 4;
constexpr int MR = 6;
#endif

typedef float vf __attribute__((vector_size(VL * 4)));
typedef int32_t vi __attribute__((vector_size(VL * 4)));
typedef float vf_any __attribute__((vector_size(VL * 4), aligned(4), may_alias));
typedef uint16_t vh __attribute__((vector_size(VL * 2), aligned(2), may_alias));
typedef uint32_t vu __attribute__((vector_size(VL * 4)));

template <int N> struct Number {
    static constexpr int VALUE = N;
};

static inline vf load(const float* p) { return *reinterpret_cast<const vf_any*>(p); }
static inline void store(float* p, vf v) { *reinterpret_cast<vf_any*>(p) = v; }
static inline vf splat(float s) { return s - (vf){}; }
static inline int round_up(int n, int unit) { return (n + unit - 1) / unit * unit; }

static inline float sum_lanes(vf v) {
    typedef float v4 __attribute__((vector_size(16)));
    v4 part[VL / 4];
    std::memcpy(part, &v, sizeof v);
    for (int i = 1; i < VL / 4; ++i) part[0] += part[i];
    return (part[0][0] + part[0][1]) + (part[0][2] + part[0][3]);
}

// Lanes of two vectors: from 0 on those of the first, from VL on those of the second.
static inline vf pick(vf first, vf second, vi lanes) {
#ifdef __clang__
    vf picked;
    for (int i = 0; i < VL; ++i) picked[i] = lanes[i] < VL ? first[lanes[i]] : second[lanes[i] - VL];
    return picked;
#else
    return __builtin_shuffle(first, second, lanes);
#endif
}

// Makes rows of columns: lane j of vector i is lane i of vector j before.
static inline void transpose(vf* rows) {
    const auto exchange = [&](auto step) {
        constexpr int STEP = step.VALUE;
        vi low, high;
        for (int lane = 0; lane < VL; ++lane) {
            low[lane] = lane & STEP ? VL + lane - STEP : lane;
            high[lane] = lane & STEP ? VL + lane : lane + STEP;
        }
#pragma GCC unroll 16
        for (int i = 0; i < VL; ++i)
            if (!(i & STEP)) {
                const vf a = rows[i], b = rows[i + STEP];
                rows[i] = pick(a, b, low), rows[i + STEP] = pick(a, b, high);
            }
    };
    exchange(Number<1>{});
    exchange(Number<2>{});
    if constexpr (VL > 4) exchange(Number<4>{});
    if constexpr (VL > 8) exchange(Number<8>{});
}

// Adds up each of four vectors: lane i of the result is the sum of v[i]. In the first step even lanes take pairs of v[0] or
// v[2] and odd ones of v[1] or v[3], in the second every fourth lane those of one vector.
typedef float quad __attribute__((vector_size(16)));
static inline quad sums_of_four(const vf* v) {
    const auto halved = [](vf a, vf b, auto step) {
        constexpr int STEP = step.VALUE;
        vi low, high;
        for (int lane = 0; lane < VL; ++lane) {
            low[lane] = lane & STEP ? VL + lane - STEP : lane;
            high[lane] = lane & STEP ? VL + lane : lane + STEP;
        }
        return pick(a, b, low) + pick(a, b, high);
    };
    const vf sum = halved(halved(v[0], v[1], Number<1>{}), halved(v[2], v[3], Number<1>{}), Number<2>{});
    quad parts[VL / 4];
    std::memcpy(parts, &sum, sizeof sum);
    for (int i = 1; i < VL / 4; ++i) parts[0] += parts[i];
    return parts[0];
}

enum Dtype { F32 = 0, BF16 = 1, F16 = 2 };

static inline vf half_to_float(vh raw) {
    const vu bits = __builtin_convertvector(raw, vu);
    const vu magnitude = bits & 0x7fffu;
    vu value = (vu)((vf)(magnitude << 13) * 0x1p112f);
    value |= (vu)(magnitude >= 0x7c00u) & 0x7f800000u;  // infinities and NaN
    return (vf)(value | ((bits & 0x8000u) << 16));
}

// Rounds to nearest even; adding 0.5 aligns the bits of subnormals.
static inline vh float_to_half(vf v) {
    const vu sign = (vu)v & 0x80000000u, magnitude = (vu)v ^ sign;
    const vu special = 0x7c00u + ((vu)(magnitude > 0x7f800000u) & 0x200u);
    const vu subnormal = (vu)((vf)magnitude + 0.5f) - 0x3f000000u;
    const vu normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    const vu large = (vu)(magnitude >= 0x47800000u), small = (vu)(magnitude < 0x38800000u);
    const vu result = (large & special) | (small & subnormal) | (~large & ~small & normal);
    return __builtin_convertvector(result | (sign >> 16), vh);
}

static inline vf load_as(Dtype dtype, const void* base, int64_t index) {
    if (dtype == F32) return load(static_cast<const float*>(base) + index);
    if (dtype == BF16) {
        vh raw = *reinterpret_cast<const vh*>(static_cast<const uint16_t*>(base) + index);
        return (vf)(__builtin_convertvector(raw, vu) << 16);
    }
    return half_to_float(*reinterpret_cast<const vh*>(static_cast<const uint16_t*>(base) + index));
}

static inline void store_as(Dtype dtype, void* base, int64_t index, vf v) {
    if (dtype == F32) return store(static_cast<float*>(base) + index, v);
    if (dtype == BF16) {  // round to nearest even; a NaN stays a NaN
        const vu bits = (vu)v, nan = (vu)(v != v);
        const vu rounded = (nan & 0x7fc0u) | (~nan & ((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16));
        *reinterpret_cast<vh*>(static_cast<uint16_t*>(base) + index) = __builtin_convertvector(rounded, vh);
        return;
    }
    *reinterpret_cast<vh*>(static_cast<uint16_t*>(base) + index) = float_to_half(v);
}

static inline int element_size(Dtype dtype) { return dtype == F32 ? 4 : 2; }

// Loads the first n elements (n < VL) from `index` on; the other lanes are zero.
static inline vf load_part(Dtype dtype, const void* base, int64_t index, int n) {
    alignas(64) float raw[VL] = {};
    std::memcpy(raw, static_cast<const char*>(base) + index * element_size(dtype), n * element_size(dtype));
    return load_as(dtype, raw, 0);
}

// Stores the first n lanes (n <= VL) from `index` on.
static inline void store_part(Dtype dtype, void* base, int64_t index, vf v, int n) {
    alignas(64) float raw[VL];
    store_as(dtype, raw, 0, v);
    std::memcpy(static_cast<char*>(base) + index * element_size(dtype), raw, n * element_size(dtype));
}

enum Activation { NONE = 0, ELU = 1, RELU = 2, LEAKY_RELU = 3, TANH = 4, SIGMOID = 5, SILU = 6 };

// Splits exp(x), x clamped to [-87, 88], as scale * (1 + result) with scale = 2^n and result = expm1(x - n ln 2).
static inline vf exp_parts(vf x, vf& scale) {
    x = x < -87.0f ? splat(-87.0f) : x;
    x = x > 88.0f ? splat(88.0f) : x;
    vf n = x * 1.44269504f + 12582912.0f - 12582912.0f;
    vf r = x - n * 0.693359375f - n * -2.12194440e-4f;
    vf p = splat(1.98412698e-4f);
    p = p * r + 1.38888889e-3f;
    p = p * r + 8.33333333e-3f;
    p = p * r + 4.16666667e-2f;
    p = p * r + 1.66666667e-1f;
    p = p * r + 0.5f;
    p = p * r * r + r;
    scale = (vf)((__builtin_convertvector(n, vi) + 127) << 23);
    return p;
}

// exp(x) - 1, accurate near zero.
static inline vf expm1(vf x) {
    vf scale;
    const vf p = exp_parts(x, scale);
    return p * scale + (scale - 1.0f);
}

// exp(x) for x <= 0; zero below -87.
static inline vf exp_of_negative(vf x) {
    vf scale;
    const vf p = exp_parts(x, scale);
    return x < -87.0f ? splat(0.0f) : p * scale + scale;
}

static inline vf activate(Activation kind, vf x, float slope) {
    switch (kind) {
    case ELU: return x > 0.0f ? x : expm1(x);
    case RELU: return x < 0.0f ? splat(0.0f) : x;
    case LEAKY_RELU: return x < 0.0f ? x * slope : x;
    case TANH: {
        vf e = expm1(2.0f * x);
        return e / (e + 2.0f);
    }
    case SIGMOID: {
        vf e = expm1(-x) + 1.0f;
        return 1.0f / (1.0f + e);
    }
    case SILU: {
        vf e = exp_of_negative(x < 0.0f ? x : -x);  // exp(-|x|): it does not overflow, and far below zero silu is -0
        return (x < 0.0f ? x * e : x) / (1.0f + e);
    }
    default: return x;
    }
}

// The activation's derivative as a function of its output y; not for SILU, whose derivative needs the input.
static inline vf derivative(Activation kind, vf y, float slope) {
    const vf one = splat(1.0f);
    switch (kind) {
    case ELU: return y > 0.0f ? one : y + 1.0f;
    case RELU: return y > 0.0f ? one : splat(0.0f);
    case LEAKY_RELU: return y > 0.0f ? one : splat(slope);
    case TANH: return 1.0f - y * y;
    case SIGMOID: return y * (1.0f - y);
    default: return one;
    }
}

// The activation's derivative as a function of its input x.
static inline vf derivative_at(Activation kind, vf x, float slope) {
    if (kind != SILU) return derivative(kind, activate(kind, x, slope), slope);
    const vf e = exp_of_negative(x < 0.0f ? x : -x);
    const vf sigmoid = (x < 0.0f ? e : splat(1.0f)) / (1.0f + e);
    return sigmoid * (1.0f + x * (1.0f - sigmoid));
}

}  // namespace KILN_NAMESPACE
}  // namespace kiln
