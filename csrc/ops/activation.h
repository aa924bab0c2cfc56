#pragma once
#include <cstdint>

namespace medmpi {

/// ReLU (S0 eq. 5) on `n` contiguous float32 values. `y` may be `x`, `dx` may be `dy`.
struct ActivationOps {
  void (*relu)(int64_t n, const float* x, float* y);
  /// dx = dy where the saved output y is positive, else 0.
  void (*relu_backward)(int64_t n, const float* dy, const float* y, float* dx);
};

}  // namespace medmpi
