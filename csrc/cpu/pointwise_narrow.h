#pragma once
// The product of many pixels and a few columns: a vector register along the columns would be nearly empty, so vectors
// run along the channels instead, and the lanes of the sums of kLanes pixels are added by a transposition.
#include "cpu/pixels.h"
#include "cpu/threads.h"
#include "cpu/tile.h"

namespace medmpi::MEDMPI_ISA {
namespace {

constexpr int64_t kNarrow = 4;  // columns at most
constexpr int64_t kNarrowChunk = 32 * kLanes;

/// to[j * kLanes + lane] of each of `Columns` vectors of columns: partial sums of pixels `rows[0..3]`.
template <int Columns>
MEDMPI_INLINE void narrow_sums(const float* const* rows, int64_t c, const float* weight, int64_t pitch, float* to) {
  constexpr int kRows = 4;
  Vec sum[kRows][Columns] = {};
  for (int64_t j = 0; j < c; j += kLanes) {
    const int64_t left = c - j;
    Vec w[Columns];
#pragma GCC unroll 4
    for (int q = 0; q < Columns; ++q) w[q] = load(weight + q * pitch + j);
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i) {
      const Vec pixel = left < kLanes ? load_part(rows[i] + j, left) : load(rows[i] + j);
#pragma GCC unroll 4
      for (int q = 0; q < Columns; ++q) sum[i][q] += pixel * w[q];
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
    for (int q = 0; q < Columns; ++q) store(to + (q * kLanes + i) * kLanes, sum[i][q]);
}

/// y[i][q] = the product of pixel rows[i] and column q + start[q], for `count` pixels; `weight` holds a row of `pitch`
/// floats for each column, a multiple of kLanes, zero beyond `c`.
template <int Columns>
void narrow_rows(const float* const* rows, int64_t count, int64_t c, const float* weight, int64_t pitch,
                 const float* start, bool relu, float* const* y) {
  for (int64_t i = 0; i < count; i += kLanes) {
    const int64_t here = count - i < kLanes ? count - i : kLanes;
    const float* group[kLanes];
    for (int64_t j = 0; j < kLanes; ++j) group[j] = rows[i + (j < here ? j : 0)];
    alignas(64) float sums[Columns * kLanes * kLanes];
    for (int64_t j = 0; j < here; j += 4) narrow_sums<Columns>(group + j, c, weight, pitch, sums + j * kLanes);
    for (int q = 0; q < Columns; ++q) {
      Vec v[kLanes];
#pragma GCC unroll 16
      for (int j = 0; j < kLanes; ++j) v[j] = load(sums + (q * kLanes + j) * kLanes);
      transpose(v);
#pragma GCC unroll 4
      for (int width = kLanes / 2; width > 0; width /= 2)
#pragma GCC unroll 8
        for (int j = 0; j < width; ++j) v[j] += v[j + width];
      v[0] += broadcast(start[q]);
      if (relu) v[0] = v[0] < Vec{} ? Vec{} : v[0];
      for (int64_t j = 0; j < here; ++j) y[i + j][q] = v[0][j];
    }
  }
}

}  // namespace
}  // namespace medmpi::MEDMPI_ISA
