#pragma once
#include <cstdint>

namespace medmpi {

/// A fully connected layer: x (m, c), weight (c, k), y (m, k).
struct LinearShape {
  int64_t m, c, k;
};

struct LinearOps {
  /// y = x weight + bias; bias may be null.
  void (*forward)(const LinearShape& g, const float* x, const float* weight, const float* bias, float* y);
  /// dx = dy weight^T.
  void (*backward_data)(const LinearShape& g, const float* dy, const float* weight, float* dx);
  /// dweight += x^T dy.
  void (*backward_weight)(const LinearShape& g, const float* dy, const float* x, float* dweight);
  /// dbias += sum of dy over m.
  void (*backward_bias)(const LinearShape& g, const float* dy, float* dbias);
};

}  // namespace medmpi
