#pragma once
#include <cstdint>

#include "ops/filter.h"

namespace medmpi {

/// A recursive filter of the third order, run forward and then backward along an axis:
///   w[i] = gain x[i] + a[0] w[i - 1] + a[1] w[i - 2] + a[2] w[i - 3],  y[i] likewise from w[i] and y[i + 1..i + 3].
/// `gain` is 1 - a[0] - a[1] - a[2]: a constant passes unchanged. Before the first element the input is constant;
/// behind the last one too, for which `ending` (3, 3) gives y of the last element and the two behind it from w of the
/// last three, both relative to that constant.
struct RecursiveFilter {
  double gain, a[3];
  double ending[9];
  int64_t margin;  // elements beyond each end that are taken from the border's sources before it counts as constant
};

/// Along one axis of a C-contiguous array seen as (outer, n, inner); of `f` the extents, the border and what lies
/// outside count. Cost is independent of the filter's width. x and y are separate.
struct RecursiveOps {
  void (*f32)(const AxisFilter& f, const RecursiveFilter& r, const float* x, float* y);
  void (*f64)(const AxisFilter& f, const RecursiveFilter& r, const double* x, double* y);
};

}  // namespace medmpi
