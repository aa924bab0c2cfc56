#pragma once
// The pixels that a filter of one tap meets: all of an array, or every so many rows and columns of its images.
#include "ops/conv2d.h"

namespace medmpi::MEDMPI_ISA {
namespace {

/// Pixels of images in memory order; distances in floats.
struct Pixels {
  int64_t rows, columns;       // of an image
  int64_t image, line, pixel;  // from one to the next

  /// Sets to[i] to where pixel first + i lies.
  template <typename Float>
  void find(int64_t first, int64_t count, Float* base, Float** to) const {
    int64_t column = first % columns, row = first / columns % rows, n = first / columns / rows;
    while (count > 0) {
      Float* const at = base + n * image + row * line + column * pixel;
      const int64_t run = count < columns - column ? count : columns - column;
      for (int64_t i = 0; i < run; ++i) to[i] = at + i * pixel;
      to += run;
      count -= run;
      column = 0;
      if (++row == rows) row = 0, ++n;
    }
  }
};

/// Pixels of n images of x that a 1x1 filter meets.
inline Pixels input_pixels(const Conv2dShape& g) {
  if (g.stride_h == 1 && g.stride_w == 1 && g.out_h() == g.h && g.out_w() == g.w)
    return {1, g.n * g.h * g.w, 0, 0, g.c};
  return {g.out_h(), g.out_w(), g.h * g.w * g.c, g.stride_h * g.w * g.c, g.stride_w * g.c};
}

/// Pixels of y, which lie side by side.
inline Pixels output_pixels(const Conv2dShape& g) { return {1, g.n * g.out_h() * g.out_w(), 0, 0, g.k}; }

}  // namespace
}  // namespace medmpi::MEDMPI_ISA
