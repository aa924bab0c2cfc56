#pragma once
#include <cstdint>

namespace medmpi {

/// Batch normalisation of `m` rows of `c` channels (NHWC: m = n h w). Statistics and sums over rows are float64.
/// `mean` and `rstd` are float64 too. Backward masks dy for a ReLU after the normalisation where `y`, the saved output,
/// is given: where y > 0; or where `beta` is given instead: where the output, computed again to the bit, is > 0, which
/// reads one array less. Both null: there was no ReLU.
/// Functions that return bool return false when there is no memory for the partial results.
struct BatchNormOps {
  /// mean[c] and m2[c] = sum of squared deviations from it; zeros for m = 0.
  bool (*statistics)(int64_t m, int64_t c, const float* x, double* mean, double* m2);
  /// y = (x - mean) rstd gamma + beta (+ residual), then ReLU if `relu`. `y` may be `x` or `residual`.
  void (*apply)(int64_t m, int64_t c, const float* x, const float* gamma, const float* beta, const double* mean,
                const double* rstd, const float* residual, bool relu, float* y);
  /// sum_dy[c] = sum of masked dy, sum_dy_xhat[c] = sum of masked dy (x - mean) rstd.
  bool (*backward_reduce)(int64_t m, int64_t c, const float* dy, const float* x, const float* y, const float* gamma,
                          const float* beta, const double* mean, const double* rstd, double* sum_dy,
                          double* sum_dy_xhat);
  /// dx = gamma rstd (dy - sum_dy / count - xhat sum_dy_xhat / count) with masked dy, which also goes to `dresidual`
  /// unless that is null. `dx` may be `dy`.
  void (*backward_apply)(int64_t m, int64_t c, const float* dy, const float* x, const float* y, const float* gamma,
                         const float* beta, const double* mean, const double* rstd, const double* sum_dy,
                         const double* sum_dy_xhat, double count, float* dresidual, float* dx);
  /// rstd = 1 / sqrt(m2 / count + eps), with a variance of 0 for count 0. `rstd` may be `m2`.
  void (*deviation)(int64_t c, double count, double eps, const double* m2, double* rstd);
  /// running += float32(rate (value - running)) in float64, for the mean and for the unbiased variance m2 / (count -
  /// 1).
  void (*track)(int64_t c, double count, double rate, const double* mean, const double* m2, float* running_mean,
                float* running_var);
  /// y += sums, rounded to float32.
  void (*add_sums)(int64_t c, const double* sums, float* y);
  /// mean and rstd = 1 / sqrt(variance + eps) of running statistics, for `apply` and `backward_apply`.
  void (*from_running)(int64_t c, double eps, const float* running_mean, const float* running_var, double* mean,
                       double* rstd);
};

}  // namespace medmpi
