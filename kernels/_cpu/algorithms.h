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
    static constexpr int VALUE[10] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9}, SUM[10] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9};
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

// F(M, 2): M + 1 products for M outputs of 2 taps, y[i] = x[i] g[0] + x[i + 1] g[1]. Where the second tap is zero, so is the
// last product. x: inputs that lie `step` apart; product p takes FIRST[p] g[0] + SECOND[p] g[1].
template <int M> struct TwoTaps;

// At the points 0, 1 and infinity: the coefficients are 0 and +-1.
template <> struct TwoTaps<2> {
    static constexpr float FIRST[3] = {1, 1, 0}, SECOND[3] = {0, 1, 1};
    static void input(const vf* x, int step, vf* u) {
        input_of_first(x, step, u);
        u[2] = x[step] - x[2 * step];
    }
    static void input_of_first(const vf* x, int step, vf* u) {
        u[0] = x[0] - x[step];
        u[1] = x[step];
    }
    static void output(const vf* m, vf* y, int step) {
        y[0] = m[0] + m[1];
        y[step] = m[1] - m[2];
    }
    static void output_adjoint(const vf* y, vf* m) {
        m[0] = y[0];
        m[1] = y[0] + y[1];
        m[2] = -y[1];
    }
};

// At the points of SixPoints but 0.
template <> struct TwoTaps<4> {
    static constexpr float A = 0.70710678118654752f, B = 1.41421356237309505f;
    static constexpr float FIRST[5] = {-2.0f / 3, -2.0f / 3, 1.0f / 6, 1.0f / 6, 0};
    static constexpr float SECOND[5] = {-2.0f / 3 * A, 2.0f / 3 * A, B / 6, -B / 6, 1};
    static void input(const vf* x, int step, vf* u) {
        input_of_first(x, step, u);
        u[4] = x[0] + x[4 * step] - 2.5f * x[2 * step];
    }
    static void input_of_first(const vf* x, int step, vf* u) {
        const vf even_a = 0.5f * x[2 * step] - x[0], odd_a = A * (x[3 * step] - 2.0f * x[step]);
        u[0] = even_a + odd_a;
        u[1] = even_a - odd_a;
        const vf even_b = 2.0f * x[2 * step] - x[0], odd_b = B * (x[3 * step] - 0.5f * x[step]);
        u[2] = even_b + odd_b;
        u[3] = even_b - odd_b;
    }
    static void output(const vf* m, vf* y, int step) {
        const vf sum_a = m[0] + m[1], sum_b = m[2] + m[3], difference_a = A * (m[0] - m[1]), difference_b = B * (m[2] - m[3]);
        y[0] = sum_a + sum_b;
        y[step] = difference_a + difference_b;
        y[2 * step] = 0.5f * sum_a + 2.0f * sum_b;
        y[3 * step] = 0.5f * difference_a + 2.0f * difference_b + m[4];
    }
    static void output_adjoint(const vf* y, vf* m) {
        const vf even_a = y[0] + 0.5f * y[2], odd_a = A * (y[1] + 0.5f * y[3]);
        m[0] = even_a + odd_a;
        m[1] = even_a - odd_a;
        const vf even_b = y[0] + 2.0f * y[2], odd_b = B * (y[1] + 2.0f * y[3]);
        m[2] = even_b + odd_b;
        m[3] = even_b - odd_b;
        m[4] = y[3];
    }
};

// The combinations of two signals, each with the M + 1 products of TwoTaps<M>: the numbers of the first and the second tap
// of either signal. NO_TAP: the second is zero. ALONE: the first meets inputs that are not transformed.
constexpr int NO_TAP = -1, ALONE = -2;
template <int M, int P, int K> struct PairsOfTaps {
    float rows[P][K];
    constexpr PairsOfTaps(int first0, int second0, int first1, int second1) : rows() {
        const int first[2] = {first0, first1}, second[2] = {second0, second1};
        for (int p = 0; p < P; ++p) {
            const int signal = p / (M + 1), product = p % (M + 1);
            rows[p][first[signal]] = second[signal] == ALONE ? 1 : TwoTaps<M>::FIRST[product];
            if (second[signal] >= 0) rows[p][second[signal]] = TwoTaps<M>::SECOND[product];
        }
    }
    constexpr const float* operator[](int p) const { return rows[p]; }
};

// Stride 2: even and odd inputs are two signals of their own, each met by every other tap as in TwoTaps. Their products
// are added before the outputs are formed, so that each sum is one product of twice the length. Of 3 taps the middle one
// is alone on the odd inputs.
template <int TAPS, int M> struct Stride2 {
    static constexpr int K = TAPS, OUT = M, P = TAPS == 4 ? 2 * M + 2 : 2 * M + 1, IN = P, STEP = 2 * M, D = P, Q = M + 1;
    static constexpr auto& VALUE = OneToOne::VALUE;
    struct Signals {
        int sums[P];
        constexpr Signals() : sums() {
            for (int p = 0; p < P; ++p) sums[p] = p % (M + 1);
        }
        constexpr int operator[](int p) const { return sums[p]; }
    };
    static constexpr Signals SUM{};
    static constexpr PairsOfTaps<M, P, K> G{0, 2, 1, TAPS == 4 ? 3 : NO_TAP};
    static void input(const vf* x, vf* u) {
        TwoTaps<M>::input(x, 2, u);
        if constexpr (TAPS == 4)
            TwoTaps<M>::input(x + 1, 2, u + Q);
        else
            TwoTaps<M>::input_of_first(x + 1, 2, u + Q);
    }
    static void output(const vf* m, vf* y) { TwoTaps<M>::output(m, y, 1); }
    static void output_adjoint(const vf* y, vf* m) { TwoTaps<M>::output_adjoint(y, m); }
};

// The adjoint of Stride2, a transposed convolution: even and odd outputs are two signals, each of every other tap. The
// first output is one that the odd taps make: of 4 taps two, which also read the input before; of 3 taps one.
template <int TAPS, int M> struct Spread2 : OneToOne {
    static constexpr int K = TAPS, OUT = 2 * M, P = TAPS == 4 ? 2 * M + 2 : 2 * M + 1, D = P, Q = P, STEP = M;
    static constexpr int IN = TAPS == 4 ? M + 2 : M + 1;
    static constexpr PairsOfTaps<M, P, K> G = TAPS == 4 ? PairsOfTaps<M, P, K>{3, 1, 2, 0} : PairsOfTaps<M, P, K>{2, 0, 1, ALONE};
    static void input(const vf* x, vf* u) {
        TwoTaps<M>::input(x, 1, u);
        if constexpr (TAPS == 4)
            TwoTaps<M>::input(x + 1, 1, u + M + 1);
        else
            for (int i = 0; i < M; ++i) u[M + 1 + i] = x[i];
    }
    static void output(const vf* m, vf* y) {
        if constexpr (TAPS == 4) {
            TwoTaps<M>::output(m, y, 2);
            TwoTaps<M>::output(m + M + 1, y + 1, 2);
        } else {
            for (int i = 0; i < M; ++i) y[2 * i] = m[M + 1 + i];
            TwoTaps<M>::output(m, y + 1, 2);
        }
    }
};

}  // namespace KILN_NAMESPACE
}  // namespace kiln
