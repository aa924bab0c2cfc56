#pragma once
#include <cstdint>

#include "ops/filter.h"

namespace medmpi {

/// Medians over windows of (2 rz + 1, 2 ry + 1, 2 rx + 1) values of a C-contiguous array (outer, depth, height, width,
/// channels). At most 65535 values to a window. float32 values are ordered by their bits: -0 below 0, NaN at the ends.
struct MedianShape {
  int64_t outer, depth, height, width, channels;
  int64_t rz, ry, rx;
  Border border;
  double outside;  // value beyond the ends for Border::constant, one that the element type holds

  constexpr int64_t window() const { return (2 * rz + 1) * (2 * ry + 1) * (2 * rx + 1); }
};

/// x and y are separate.
struct MedianOps {
  void (*u8)(const MedianShape& s, const uint8_t* x, uint8_t* y);
  void (*u16)(const MedianShape& s, const uint16_t* x, uint16_t* y);
  void (*f32)(const MedianShape& s, const float* x, float* y);
};

}  // namespace medmpi
