#pragma once
#include <cstdint>

namespace medmpi {

/// Operations on `n` contiguous float32 values. Results may be an input's memory.
struct ElementwiseOps {
  /// y = a + b, not below 0 with `relu`.
  void (*add)(int64_t n, const float* a, const float* b, bool relu, float* y);
  /// y += alpha x.
  void (*accumulate)(int64_t n, float alpha, const float* x, float* y);
  void (*scale)(int64_t n, float factor, float* y);
  void (*fill)(int64_t n, float value, float* y);
  /// Sum of squares in float64, in an order fixed by n.
  double (*sum_squares)(int64_t n, const float* x);
  bool (*all_finite)(int64_t n, const float* x);
  /// y = x scale[c] + shift[c] over m rows of c <= 1024 channels of uint8.
  void (*normalize)(int64_t m, int64_t c, const uint8_t* x, const float* scale, const float* shift, float* y);
};

}  // namespace medmpi
