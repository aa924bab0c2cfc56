#pragma once
#include <cstdint>

namespace medmpi {

/// Copies of float32 values.
struct CopyOps {
  /// Each row of y is the rows of the `count` arrays xs, width[i] values wide, one after the other.
  void (*join)(int64_t rows, int64_t count, const int64_t* width, const float* const* xs, float* y);
  /// The inverse: rows of x are cut into rows of the `count` arrays ys.
  void (*cut)(int64_t rows, int64_t count, const int64_t* width, const float* x, float* const* ys);
  /// x (n, h, w, c) into the middle of y (n, top + h + bottom, left + w + right, c), `value` around it.
  void (*pad)(int64_t n, int64_t h, int64_t w, int64_t c, int64_t top, int64_t bottom, int64_t left, int64_t right,
              float value, const float* x, float* y);
  /// y (n, p, q, c) is the part of x (n, h, w, c) that begins at (top, left).
  void (*crop)(int64_t n, int64_t h, int64_t w, int64_t c, int64_t top, int64_t left, int64_t p, int64_t q,
               const float* x, float* y);
  /// y[i][k][j] = x[i][j][k] for x (n, rows, columns).
  void (*transpose)(int64_t n, int64_t rows, int64_t columns, const float* x, float* y);
};

}  // namespace medmpi
