#pragma once
#include <cstdint>

namespace medmpi {

/// What a look at the labels finds: the position of the first that is outside [0, k) (or -1), and the sum of weights.
struct LabelCheck {
  int64_t outside;
  double weights;
};

/// Losses over `m` rows of `k` logits with one int64 label each. `weight[k]` may be null (all 1). Sums are float64 in
/// an order that does not depend on the threads; NaN logits make the result NaN.
/// Functions that return bool return false when there is no memory for the partial results.
struct LossOps {
  /// y = softmax of each row. `y` may be `x`.
  void (*softmax)(int64_t m, int64_t k, const float* x, float* y);
  bool (*check_labels)(int64_t m, int64_t k, const int64_t* labels, const float* weight, LabelCheck* found);
  /// loss = sum of w[l] (-log softmax(x)[l]) / denominator and its gradient dx; labels must be inside [0, k).
  bool (*softmax_cross_entropy)(int64_t m, int64_t k, const float* x, const int64_t* labels, const float* weight,
                                double denominator, double* loss, float* dx);
  /// Soft Dice over n images of m rows: loss = sum over images of (1 - mean over classes >= first of
  /// (2 sum p t + smooth) / (sum p + sum t + smooth)) / denominator, with p = softmax(x), and its gradient dx.
  bool (*dice)(int64_t n, int64_t m, int64_t k, const float* x, const int64_t* labels, double smooth, int64_t first,
               double denominator, double* loss, float* dx);
  /// The same two with denominators in memory beside the arrays, on devices, whose work waits for nobody: labels are
  /// not looked at before.
  bool (*softmax_cross_entropy_by)(int64_t m, int64_t k, const float* x, const int64_t* labels, const float* weight,
                                   const double* denominator, double* loss, float* dx) = nullptr;
  bool (*dice_by)(int64_t n, int64_t m, int64_t k, const float* x, const int64_t* labels, double smooth, int64_t first,
                  const double* denominator, double* loss, float* dx) = nullptr;
  /// The number of rows whose first largest logit (a NaN counts as largest) is at their label; on devices.
  void (*count_correct)(int64_t m, int64_t k, const float* x, const int64_t* labels, int64_t* count) = nullptr;
};

}  // namespace medmpi
