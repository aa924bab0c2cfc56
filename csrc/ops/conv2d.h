#pragma once
#include <cstdint>

namespace medmpi {

/// Sizes of a 2-D cross-correlation. x (n, h, w, c), weight (r, s, c / groups, k), y (n, out_h, out_w, k); output
/// channels [g k/groups, (g+1) k/groups) read input channels [g c/groups, (g+1) c/groups). pad_bottom and pad_right may
/// be negative: rows and columns of x that no window reaches.
struct Conv2dShape {
  int64_t n, h, w, c;
  int64_t r, s, k, groups;
  int64_t stride_h, stride_w, dilation_h, dilation_w;
  int64_t pad_top, pad_bottom, pad_left, pad_right;

  constexpr int64_t out_h() const { return (h + pad_top + pad_bottom - dilation_h * (r - 1) - 1) / stride_h + 1; }
  constexpr int64_t out_w() const { return (w + pad_left + pad_right - dilation_w * (s - 1) - 1) / stride_w + 1; }
  /// Whether Conv2dAlgo::kWinograd can compute it.
  constexpr bool fits_winograd() const {
    return (r == 3 || r == 5) && s == r && stride_h == 1 && stride_w == 1 && dilation_h == 1 && dilation_w == 1 &&
           groups == 1;
  }
  constexpr int64_t group_c() const { return c / groups; }
  constexpr int64_t group_k() const { return k / groups; }
};

/// How the 3x3 arithmetic is done. kAuto lets the backend choose by shape.
enum class Conv2dAlgo : int32_t { kAuto, kDirect, kWinograd };

/// What becomes of the sums of a forward pass: y = sums + bias (+ residual), then max(y, 0) if `relu`; and the moments
/// of y for the batch normalisation that follows. Null pointers: nothing of the kind.
struct Conv2dEpilogue {
  const float* bias;      // k
  const float* residual;  // as y, may not be y
  bool relu;
  double *mean, *m2;  // k each, or both null: mean and sum of squared deviations of each channel
};

/// 2-D convolution of S0 eq. 4 as networks use it (cross-correlation) and its gradients. All arrays are contiguous
/// float32.
struct Conv2dOps {
  /// y = conv(x, weight) and what the epilogue says.
  void (*forward)(const Conv2dShape& shape, Conv2dAlgo algo, const float* x, const float* weight,
                  const Conv2dEpilogue& epilogue, float* y);
  /// dx = conv^T(dy, weight) + bias: the gradient for x, and with `bias` (c, may be null) the transposed convolution.
  void (*backward_data)(const Conv2dShape& shape, Conv2dAlgo algo, const float* dy, const float* weight,
                        const float* bias, float* dx);
  /// dx = before + conv^T(dy, weight) in one pass, where the kernel for this shape, whatever n, has a way; returns
  /// whether it does. `before` may be dx. Null: never.
  bool (*backward_data_onto)(const Conv2dShape& shape, Conv2dAlgo algo, const float* dy, const float* weight,
                             const float* before, float* dx);
  /// dweight += the gradient for the weight.
  void (*backward_weight)(const Conv2dShape& shape, Conv2dAlgo algo, const float* dy, const float* x, float* dweight);
  /// sums[j] += sum over the rows of a (rows, channels) array: the gradient of a bias.
  void (*sum_channels)(int64_t rows, int64_t channels, const float* dy, float* sums);
};

}  // namespace medmpi
