#pragma once
// The two ways to filter along an axis, for any element type: along contiguous lines (padded line buffer), and across
// lines (a table of line pointers, a stripe of columns at a time so that the lines it needs stay in the first-level
// cache). Sums run as in scipy.ndimage: the centre, then pairs from the far end inwards.
#include "cpu/simd.h"
#include "ops/filter.h"

namespace medmpi::MEDMPI_ISA {
namespace {

template <typename T>
struct Pack;
template <>
struct Pack<float> {
  typedef float Type __attribute__((vector_size(4 * kLanes)));
  static constexpr int64_t kWidth = kLanes;
};
template <>
struct Pack<double> {
  typedef double Type __attribute__((vector_size(4 * kLanes)));
  static constexpr int64_t kWidth = kLanes / 2;
};

template <typename T>
MEDMPI_INLINE typename Pack<T>::Type pack_load(const T* p) {
  typename Pack<T>::Type v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

/// Packs of columns kept in registers while the taps run.
constexpr int kUnroll = 4;

/// One result from three-argument access line(t): the value at offset t of the centre.
template <typename T, typename Line>
MEDMPI_INLINE T weigh(Symmetry symmetry, int64_t radius, const T* taps, const Line& line) {
  T sum = line(0) * taps[radius];
  if (symmetry == Symmetry::even)
    for (int64_t t = -radius; t < 0; ++t) sum += (line(t) + line(-t)) * taps[radius + t];
  else if (symmetry == Symmetry::odd)
    for (int64_t t = -radius; t < 0; ++t) sum += (line(t) - line(-t)) * taps[radius + t];
  else {
    sum = line(-radius) * taps[0];
    for (int64_t t = -radius + 1; t <= radius; ++t) sum += line(t) * taps[radius + t];
  }
  return sum;
}

/// `Count` packs of results at once; value(t, u) loads pack u at offset t.
template <typename T, int Count, typename Value>
MEDMPI_INLINE void weigh_packs(Symmetry symmetry, int64_t radius, const T* taps, const Value& value, T* out) {
  typename Pack<T>::Type sum[Count];
#pragma GCC unroll 4
  for (int u = 0; u < Count; ++u) sum[u] = value(0, u) * taps[radius];
  if (symmetry == Symmetry::even) {
    for (int64_t t = -radius; t < 0; ++t)
#pragma GCC unroll 4
      for (int u = 0; u < Count; ++u) sum[u] += (value(t, u) + value(-t, u)) * taps[radius + t];
  } else if (symmetry == Symmetry::odd) {
    for (int64_t t = -radius; t < 0; ++t)
#pragma GCC unroll 4
      for (int u = 0; u < Count; ++u) sum[u] += (value(t, u) - value(-t, u)) * taps[radius + t];
  } else {
#pragma GCC unroll 4
    for (int u = 0; u < Count; ++u) sum[u] = value(-radius, u) * taps[0];
    for (int64_t t = -radius + 1; t <= radius; ++t)
#pragma GCC unroll 4
      for (int u = 0; u < Count; ++u) sum[u] += value(t, u) * taps[radius + t];
  }
#pragma GCC unroll 4
  for (int u = 0; u < Count; ++u) std::memcpy(out + u * Pack<T>::kWidth, &sum[u], sizeof sum[u]);
}

/// Results [begin, end) of a line: at(t) points to the value at offset t for result 0.
template <typename T, typename At>
inline void filter_line(Symmetry symmetry, int64_t radius, const T* taps, const At& at, int64_t begin, int64_t end,
                        T* out) {
  constexpr int64_t kStep = Pack<T>::kWidth;
  int64_t j = begin;
  for (; j + kUnroll * kStep <= end; j += kUnroll * kStep)
    weigh_packs<T, kUnroll>(
        symmetry, radius, taps, [&](int64_t t, int u) { return pack_load(at(t) + j + u * kStep); }, out + j);
  for (; j + kStep <= end; j += kStep)
    weigh_packs<T, 1>(symmetry, radius, taps, [&](int64_t t, int) { return pack_load(at(t) + j); }, out + j);
  for (; j < end; ++j) out[j] = weigh(symmetry, radius, taps, [&](int64_t t) { return at(t)[j]; });
}

/// Copies a line of n groups of `inner` values into `padded` with `radius` groups before and after it.
template <typename T>
inline void pad_line(const AxisFilter& f, const T* x, T* padded) {
  const auto group = static_cast<size_t>(f.inner) * sizeof(T);
  std::memcpy(padded + f.radius * f.inner, x, static_cast<size_t>(f.n) * group);
  for (int64_t side = 0; side < 2; ++side)
    for (int64_t i = 0; i < f.radius; ++i) {
      const int64_t at = side ? f.n + i : i - f.radius;
      const int64_t from = f.source(at);
      T* to = padded + (at + f.radius) * f.inner;
      if (from >= 0)
        std::memcpy(to, x + from * f.inner, group);
      else
        for (int64_t k = 0; k < f.inner; ++k) to[k] = static_cast<T>(f.outside);
    }
}

/// Along a contiguous line that pad_line() prepared.
template <typename T>
inline void filter_along(const AxisFilter& f, const T* taps, const T* padded, T* y) {
  const T* centre = padded + f.radius * f.inner;
  const int64_t inner = f.inner;
  filter_line(f.symmetry, f.radius, taps, [=](int64_t t) { return centre + t * inner; }, 0, f.n * inner, y);
}

/// Across lines of `inner` values: lines[i + t] is the line at offset t of result i, 0 <= i < count. Columns are taken
/// in stripes, of which all lines fit the first-level cache.
template <typename T>
inline void filter_across(Symmetry symmetry, int64_t radius, const T* taps, const T* const* lines, int64_t count,
                          int64_t inner, T* y) {
  constexpr int64_t kBytes = 32 << 10, kStep = kUnroll * Pack<T>::kWidth, kMost = 2048 / sizeof(T);
  const int64_t fit = kBytes / static_cast<int64_t>(sizeof(T)) / (count + 2 * radius) / kStep * kStep;
  const int64_t stripe = fit < kStep ? kStep : fit < kMost ? fit : kMost;
  for (int64_t begin = 0; begin < inner; begin += stripe) {
    const int64_t end = begin + stripe < inner ? begin + stripe : inner;
    for (int64_t i = 0; i < count; ++i)
      filter_line(symmetry, radius, taps, [=](int64_t t) { return lines[i + t]; }, begin, end, y + i * inner);
  }
}

/// A constant line for Border::constant, and a table of n + 2 * radius line pointers into one plane.
template <typename T>
inline void find_lines(const AxisFilter& f, const T* plane, const T* constant, const T** lines) {
  for (int64_t i = -f.radius; i < f.n + f.radius; ++i) {
    const int64_t from = f.source(i);
    lines[i + f.radius] = from < 0 ? constant : plane + from * f.inner;
  }
}

}  // namespace
}  // namespace medmpi::MEDMPI_ISA
