#pragma once
#include <cstdint>

namespace medmpi {

/// Geometric and grey-level augmentation of n uint8 NHWC images, each by its own parameters, in integer arithmetic
/// alone: the same bytes from every instruction set.
struct WarpShape {
  int64_t n, h, w, c;
  bool bilinear;  // else nearest
};

struct WarpOps {
  /// Output pixel (i, j) of an image reads its input at column (m[0] j + m[1] i + m[2]) / 2^16 and row
  /// (m[3] j + m[4] i + m[5]) / 2^16 of its six numbers in `matrix` (n, 6); what lies outside is 0. With `colour`
  /// (n, c, 2) a value v becomes (colour[0] v + colour[1]) / 2^12, rounded and clamped to 0..255.
  void (*forward)(const WarpShape& s, const uint8_t* x, const int64_t* matrix, const int64_t* colour, uint8_t* y);
};

}  // namespace medmpi
