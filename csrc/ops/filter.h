#pragma once
#include <cstdint>

namespace medmpi {

/// What lies beyond an axis' ends, scipy.ndimage's names: (d c b a | a b c d | d c b a), constants, (a a | a b c d |
/// d d), (d c b | a b c d | c b a), (a b c d | a b c d | a b c d).
enum class Border : int32_t { reflect, constant, nearest, mirror, wrap };

/// Where element i of an axis of n elements is found: an index in [0, n), or -1 for the constant.
constexpr int64_t border_source(Border border, int64_t i, int64_t n) {
  if (i >= 0 && i < n) return i;
  if (border == Border::constant) return -1;
  if (border == Border::nearest) return i < 0 ? 0 : n - 1;
  const int64_t period = border == Border::reflect ? 2 * n : border == Border::mirror ? 2 * n - 2 : n;
  if (period == 0) return 0;
  const int64_t k = (i % period + period) % period;
  if (k < n) return k;
  return border == Border::reflect ? 2 * n - 1 - k : 2 * n - 2 - k;
}

/// Symmetry of the taps about their centre; pairs are then added (or subtracted) before they are multiplied.
enum class Symmetry : int32_t { none, even, odd };

/// Filtering along one axis of a C-contiguous array seen as (outer, n, inner).
struct AxisFilter {
  int64_t outer, n, inner;
  int64_t radius;  // 2 * radius + 1 taps
  Border border;
  Symmetry symmetry;
  double outside;  // value beyond the ends for Border::constant

  /// Where element i, -radius <= i < n + radius, is found: an index in [0, n), or -1 for the constant.
  constexpr int64_t source(int64_t i) const { return border_source(border, i, n); }
};

struct FilterOps {
  /// y[o, i, k] = sum over t of taps[t + radius] * x[o, i + t, k]. x and y are separate.
  void (*correlate1d)(const AxisFilter& f, const float* taps, const float* x, float* y);
  void (*correlate1d_double)(const AxisFilter& f, const double* taps, const double* x, double* y);
  /// Rows and columns of `rows.outer` planes (rows.n, columns.n, columns.inner) in one pass over memory. Every source
  /// of a row must lie within its radius (no Border::wrap), and a constant border must be the same on both axes.
  void (*correlate2d)(const AxisFilter& rows, const AxisFilter& columns, const float* row_taps,
                      const float* column_taps, const float* x, float* y);
};

}  // namespace medmpi
