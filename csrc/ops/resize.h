#pragma once
#include <cstdint>

namespace medmpi {

enum class Interpolation : int32_t { nearest, bilinear };

/// Resizing of NHWC images (n, h, w, c) to (n, out_h, out_w, c), torch.nn.functional.interpolate's rules.
struct ResizeShape {
  int64_t n, h, w, c, out_h, out_w;
  Interpolation interpolation;
  bool align_corners;  // bilinear only: the outermost pixel centres stay where they are
};

struct ResizeOps {
  void (*forward)(const ResizeShape& s, const float* x, float* y);
  /// Overwrites dx.
  void (*backward)(const ResizeShape& s, const float* dy, float* dx);
};

}  // namespace medmpi
