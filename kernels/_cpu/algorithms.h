// Bilinear algorithms: how few products of inputs and taps a convolution along one axis takes.
#pragma once
#include "vector.h"

namespace kiln {
namespace KILN_NAMESPACE {

// Each struct below computes OUT results of one axis from IN inputs and K taps with P products. `input` makes D values of
// the IN inputs; product p multiplies value VALUE[p] with combination G[p] of the taps and is added to sum SUM[p];
// `output` makes the OUT results of the Q sums, and `output_adjoint` is its transpose. The next OUT results read the
// inputs that lie STEP further. In two dimensions an algorithm runs along one axis, then along the other.
//
// REVERSED stands for the same algorithm on the taps in reverse order: weights are packed so, nothing else changes.

// Products that each have a value and a sum of their own.
struct OneToOne {
    static constexpr int VALUE[8] = {0, 1, 2, 3, 4, 5, 6, 7}, SUM[8] = {0, 1, 2, 3, 4, 5, 6, 7};
};

// Nearest x2, then 3 taps: differences of neighbours carry the outer taps, so 3 products give 2 outputs per input.
struct NearestUp : OneToOne {
    static constexpr int K = 3, IN = 3, STEP = 1, D = 3, P = 3, Q = 3, OUT = 2;
    static constexpr float G[P][K] = {{1, 0, 0}, {1, 1, 1}, {0, 0, 1}};
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
    static constexpr int K = 3, IN = 4, STEP = 2, D = 3, P = 3, Q = 1, OUT = 1;
    static constexpr int VALUE[P] = {0, 1, 2}, SUM[P] = {0, 0, 0};
    static constexpr float G[P][K] = {{1, 0, 0}, {1, 1, 1}, {0, 0, 1}};
    static void input(const vf* x, vf* u) {
        u[0] = x[3] - x[1];
        u[1] = x[1] + x[2];
        u[2] = x[0] - x[2];
    }
    static void output(const vf* m, vf* y) { y[0] = m[0]; }
};

// Winograd F(2, 3).
struct Winograd2 : OneToOne {
    static constexpr int K = 3, IN = 4, STEP = 2, D = 4, P = 4, Q = 4, OUT = 2;
    static constexpr float G[P][K] = {{1, 0, 0}, {0.5f, 0.5f, 0.5f}, {0.5f, -0.5f, 0.5f}, {0, 0, 1}};
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

// Winograd F(7 - TAPS, TAPS) at the points 0, +-1/sqrt 2, +-sqrt 2 and infinity. The squares of 1/sqrt 2 and sqrt 2
// multiply to one, which keeps every coefficient near one and the rounding error an order of magnitude below that of the
// points 0, +-1, +-2. The inputs' transform does not depend on how many taps there are.
template <int TAPS> struct SixPoints : OneToOne {
    static constexpr int K = TAPS, OUT = 7 - TAPS, IN = 6, STEP = OUT, D = 6, P = 6, Q = 6;
    static constexpr float A = 0.70710678118654752f, B = 1.41421356237309505f;
    // columns: the powers 0 ... 4 of each point; the point at infinity takes the last tap alone
    static constexpr float POWERS[5][5] = {{1, 0, 0, 0, 0},
                                           {-2.0f / 3, -2.0f / 3 * A, -1.0f / 3, -1.0f / 3 * A, -1.0f / 6},
                                           {-2.0f / 3, 2.0f / 3 * A, -1.0f / 3, 1.0f / 3 * A, -1.0f / 6},
                                           {1.0f / 6, B / 6, 1.0f / 3, B / 3, 2.0f / 3},
                                           {1.0f / 6, -B / 6, 1.0f / 3, -B / 3, 2.0f / 3}};
    struct Combinations {
        float rows[P][K];
        constexpr Combinations() : rows() {
            for (int p = 0; p < 5; ++p)
                for (int t = 0; t < K; ++t) rows[p][t] = POWERS[p][t];
            for (int t = 0; t < K; ++t) rows[5][t] = t == K - 1;
        }
        constexpr const float* operator[](int p) const { return rows[p]; }
    };
    static constexpr Combinations G{};
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
        if constexpr (OUT > 2) y[2] = 0.5f * sum_a + 2.0f * sum_b;
        if constexpr (OUT > 3) y[3] = A * 0.5f * difference_a + B * 2.0f * difference_b;
        y[OUT - 1] += m[5];
    }
    static void output_adjoint(const vf* y, vf* m) {
        m[0] = y[0];
        vf even_a = y[0], odd_a = y[1], even_b = y[0], odd_b = y[1];
        if constexpr (OUT > 2) even_a += 0.5f * y[2], even_b += 2.0f * y[2];
        if constexpr (OUT > 3) odd_a += 0.5f * y[3], odd_b += 2.0f * y[3];
        m[1] = even_a + A * odd_a;
        m[2] = even_a - A * odd_a;
        m[3] = even_b + B * odd_b;
        m[4] = even_b - B * odd_b;
        m[5] = y[OUT - 1];
    }
};

// F(2, 2): 3 products for 2 outputs of 2 taps, y[0] = x[0] g[0] + x[1] g[1] and y[1] = x[1] g[0] + x[2] g[1]. Its
// coefficients are 0 and +-1.
struct TwoTaps {
    static void input(const vf* x, int step, vf* u) {
        u[0] = x[0] - x[step];
        u[1] = x[step];
        u[2] = x[step] - x[2 * step];
    }
    static void output(const vf* m, vf* y, int step) {
        y[0] = m[0] + m[1];
        y[step] = m[1] - m[2];
    }
};

// Stride 2: even and odd inputs are two signals of their own, each met by every other tap as in TwoTaps. Their products
// are added before the outputs are formed, so that each sum is one product of twice the length.
template <int TAPS> struct Stride2;
template <> struct Stride2<4> {
    static constexpr int K = 4, IN = 6, STEP = 4, D = 6, P = 6, Q = 3, OUT = 2;
    static constexpr int VALUE[P] = {0, 1, 2, 3, 4, 5}, SUM[P] = {0, 1, 2, 0, 1, 2};
    static constexpr float G[P][K] = {{1, 0, 0, 0}, {1, 0, 1, 0}, {0, 0, 1, 0}, {0, 1, 0, 0}, {0, 1, 0, 1}, {0, 0, 0, 1}};
    static void input(const vf* x, vf* u) {
        TwoTaps::input(x, 2, u);
        TwoTaps::input(x + 1, 2, u + 3);
    }
    static void output(const vf* m, vf* y) { TwoTaps::output(m, y, 1); }
    static void output_adjoint(const vf* y, vf* m) { NearestUp::output_adjoint(y, m); }
};
// The middle tap is alone on the odd inputs: of its three products the last is zero.
template <> struct Stride2<3> {
    static constexpr int K = 3, IN = 5, STEP = 4, D = 5, P = 5, Q = 3, OUT = 2;
    static constexpr int VALUE[P] = {0, 1, 2, 3, 4}, SUM[P] = {0, 1, 2, 0, 1};
    static constexpr float G[P][K] = {{1, 0, 0}, {1, 0, 1}, {0, 0, 1}, {0, 1, 0}, {0, 1, 0}};
    static void input(const vf* x, vf* u) {
        TwoTaps::input(x, 2, u);
        u[3] = x[1] - x[3];
        u[4] = x[3];
    }
    static void output(const vf* m, vf* y) { TwoTaps::output(m, y, 1); }
    static void output_adjoint(const vf* y, vf* m) { NearestUp::output_adjoint(y, m); }
};

// The adjoint of Stride2, a transposed convolution: even and odd outputs are two signals, each of every other tap. Four
// outputs begin with one that the odd taps make. Neighbouring outputs share the differences of the inputs.
template <int TAPS> struct Spread2;
template <> struct Spread2<4> {
    static constexpr int K = 4, IN = 4, STEP = 2, D = 5, P = 6, Q = 6, OUT = 4;
    static constexpr int VALUE[P] = {0, 1, 2, 2, 3, 4}, SUM[P] = {0, 1, 2, 3, 4, 5};
    static constexpr float G[P][K] = {{0, 0, 0, 1}, {0, 1, 0, 1}, {0, 1, 0, 0}, {0, 0, 1, 0}, {1, 0, 1, 0}, {1, 0, 0, 0}};
    static void input(const vf* x, vf* u) {
        for (int i = 0; i < 3; ++i) u[2 * i] = x[i] - x[i + 1];
        for (int i = 1; i < 3; ++i) u[2 * i - 1] = x[i];
    }
    static void output(const vf* m, vf* y) {
        TwoTaps::output(m, y, 2);
        TwoTaps::output(m + 3, y + 1, 2);
    }
};
template <> struct Spread2<3> {
    static constexpr int K = 3, IN = 3, STEP = 2, D = 4, P = 5, Q = 5, OUT = 4;
    static constexpr int VALUE[P] = {0, 2, 1, 2, 3}, SUM[P] = {0, 1, 2, 3, 4};
    static constexpr float G[P][K] = {{0, 1, 0}, {0, 1, 0}, {0, 0, 1}, {1, 0, 1}, {1, 0, 0}};
    static void input(const vf* x, vf* u) {
        u[0] = x[0];
        u[1] = x[0] - x[1];
        u[2] = x[1];
        u[3] = x[1] - x[2];
    }
    static void output(const vf* m, vf* y) {
        y[0] = m[0];
        y[2] = m[1];
        TwoTaps::output(m + 2, y + 1, 2);
    }
};

}  // namespace KILN_NAMESPACE
}  // namespace kiln
