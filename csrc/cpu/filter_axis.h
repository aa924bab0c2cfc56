#pragma once
// One axis of an array of any element type. Scratch slots: 12 padded line or constant line, 13 line table.
#include "cpu/filter.h"
#include "cpu/threads.h"
#include "ops/scratch.h"

namespace medmpi::MEDMPI_ISA {
namespace {

/// Contiguous lines: each is padded in scratch, then filtered.
template <typename T>
inline void along_axis(const AxisFilter& f, const T* taps, const T* x, T* y) {
  const int64_t line = f.n * f.inner;
  const auto bytes = static_cast<size_t>((f.n + 2 * f.radius) * f.inner) * sizeof(T);
  for_chunks(f.outer, 16, [=, &f](int64_t begin, int64_t end) {
    T* padded = static_cast<T*>(scratch(12, bytes));
    for (int64_t o = begin; o < end; ++o) {
      pad_line(f, x + o * line, padded);
      filter_along(f, taps, padded, y + o * line);
    }
  });
}

/// Lines that stand apart: a few results at a time, so that planes are shared out over threads too.
template <typename T>
inline void across_axis(const AxisFilter& f, const T* taps, const T* x, T* y) {
  constexpr int64_t kResults = 32;
  const int64_t blocks = (f.n + kResults - 1) / kResults;
  for_chunks(f.outer * blocks, 1, [=, &f](int64_t begin, int64_t end) {
    T* constant = static_cast<T*>(scratch(12, static_cast<size_t>(f.inner) * sizeof(T)));
    const T** lines = static_cast<const T**>(scratch(13, static_cast<size_t>(f.n + 2 * f.radius) * sizeof(T*)));
    if (f.border == Border::constant)
      for (int64_t k = 0; k < f.inner; ++k) constant[k] = static_cast<T>(f.outside);
    for (int64_t b = begin; b < end; ++b) {
      const int64_t plane = b / blocks * f.n * f.inner, first = b % blocks * kResults;
      const int64_t count = first + kResults < f.n ? kResults : f.n - first;
      find_lines(f, x + plane, constant, lines);
      filter_across(f.symmetry, f.radius, taps, lines + first + f.radius, count, f.inner, y + plane + first * f.inner);
    }
  });
}

template <typename T>
inline void filter_axis(const AxisFilter& f, const T* taps, const T* x, T* y) {
  // short inner runs are filtered as part of a padded line: neighbours along the axis lie `inner` values apart
  if (f.inner < 16)
    along_axis(f, taps, x, y);
  else
    across_axis(f, taps, x, y);
}

}  // namespace
}  // namespace medmpi::MEDMPI_ISA
