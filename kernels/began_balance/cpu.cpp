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

// per_sample (2n,), content (), k (), results (6,): float32.
KILN_FUNCTION(began_balance_forward,
              Pointer per_sample, content, k, results;
              Integer n;
              Real gamma, lambda_k, lambda_r;) {
    const float *per_sample = arguments.per_sample, *of_content = arguments.content, *of_k = arguments.k;
    float* results = arguments.results;
    const int64_t n = arguments.n;
    const double gamma = arguments.gamma, lambda_k = arguments.lambda_k, lambda_r = arguments.lambda_r;
    const double content = *of_content, k = *of_k;

    const double l_real = mean_of(per_sample, n), l_fake = mean_of(per_sample + n, n);
    const double balance = gamma * l_real - l_fake, moved = k + lambda_k * balance;
    results[0] = float(l_real);
    results[1] = float(l_fake);
    results[2] = float(l_real - k * l_fake);
    results[3] = float((1 - lambda_r) * l_fake + lambda_r * content);
    results[4] = float(moved < 0 ? 0 : moved > 1 ? 1 : moved);  // NaN is neither below 0 nor above 1: it stays
    results[5] = float(l_real + std::fabs(balance));
}

}  // namespace KILN_NAMESPACE
}  // namespace kiln
