// began_balance on the CPU: two means and the six numbers that follow from them, in float64 until they are stored.
#include "../_cpu/registry.h"

#include <cmath>

namespace kiln {
namespace KILN_NAMESPACE {

static double mean_of(const float* values, int64_t n) {
    double total = 0;
    for (int64_t i = 0; i < n; ++i) total += values[i];
    return total / double(n);
}

// pointers: per_sample (2n), content, k, found (l_real, l_fake, loss_d, loss_g, k, measure), all float32; integers: n;
// floats: gamma, lambda_k, lambda_r.
void began_balance_forward(const Arguments& a) {
    const float* per_sample = a.pointer<float>(0);
    const double content = *a.pointer<float>(1), k = *a.pointer<float>(2);
    float* found = a.pointer<float>(3);
    const int64_t n = a.integers[0];
    const double gamma = a.floats[0], lambda_k = a.floats[1], lambda_r = a.floats[2];

    const double l_real = mean_of(per_sample, n), l_fake = mean_of(per_sample + n, n);
    const double balance = gamma * l_real - l_fake, moved = k + lambda_k * balance;
    found[0] = float(l_real);
    found[1] = float(l_fake);
    found[2] = float(l_real - k * l_fake);
    found[3] = float((1 - lambda_r) * l_fake + lambda_r * content);
    found[4] = float(moved < 0 ? 0 : moved > 1 ? 1 : moved);  // NaN is neither and stays
    found[5] = float(l_real + std::fabs(balance));
}

}  // namespace KILN_NAMESPACE
}  // namespace kiln

KILN_REGISTER(began_balance_forward)
