#pragma once
// Mean and sum of squared deviations of each channel over rows that lie together, and over several such parts.
#include "cpu/simd.h"

namespace medmpi::MEDMPI_ISA {
namespace {

constexpr int64_t kChunkValues = 1 << 15;
constexpr int64_t kWideRow = 1024;  // longest wide row: its sums and factors live on the stack and in L1
constexpr int64_t kPreferredWide = 256;

/// How rows are cut: `copies` rows make a wide row, `rows` rows a chunk.
struct RowCut {
  int64_t m, c, copies, rows, chunks;
};

inline RowCut cut_rows(int64_t m, int64_t c) {
  int64_t common = kLanes;
  while (c % common) common /= 2;
  int64_t copies = kLanes / common;
  if (c * copies > kWideRow) copies = 1;
  while (2 * c * copies <= kPreferredWide) copies *= 2;
  int64_t rows = kChunkValues / c < 16 ? 16 : kChunkValues / c;
  rows = (rows + copies - 1) / copies * copies;
  return {m, c, copies, rows, (m + rows - 1) / rows};
}

/// s += sum of `rows` rows of `w` values, `stride` apart; q += sum of their squares, which are exact in float64.
inline void add_moments(int64_t rows, int64_t w, int64_t stride, const float* x, double* __restrict s,
                        double* __restrict q) {
  int64_t i = 0;
  for (; i + 4 <= rows; i += 4, x += 4 * stride)
    for (int64_t j = 0; j < w; ++j) {
      const double a = static_cast<double>(x[j]), b = static_cast<double>(x[stride + j]);
      const double c = static_cast<double>(x[2 * stride + j]), d = static_cast<double>(x[3 * stride + j]);
      s[j] += (a + b) + (c + d);
      q[j] += (a * a + b * b) + (c * c + d * d);
    }
  for (; i < rows; ++i, x += stride)
    for (int64_t j = 0; j < w; ++j) {
      const double a = static_cast<double>(x[j]);
      s[j] += a;
      q[j] += a * a;
    }
}

/// mean and m2 of one chunk's block of channels. Sums in float64 from the first value on: however a batch is divided
/// among ranks, its statistics then agree to the last digits of float64, and the normalised float32 values with them.
inline void chunk_statistics(const RowCut& cut, int64_t rows, int64_t c, const float* x, double* mean, double* m2) {
  alignas(64) double s[kWideRow], q[kWideRow];
  const int64_t k = cut.copies, wide = c * k, stride = cut.c * k;
  for (int64_t j = 0; j < wide; ++j) s[j] = q[j] = 0.0;
  const float* rest = x + rows / k * stride;
  add_moments(rows / k, wide, stride, x, s, q);
  add_moments(rows % k, c, cut.c, rest, s, q);
  const double inverse = 1.0 / static_cast<double>(rows);
  for (int64_t j = 0; j < c; ++j) {
    double sum = s[j], squares = q[j];
    for (int64_t copy = 1; copy < k; ++copy) {
      sum += s[copy * c + j];
      squares += q[copy * c + j];
    }
    mean[j] = sum * inverse;
    squares -= sum * mean[j];
    m2[j] = squares < 0.0 ? 0.0 : squares;
  }
}

/// Adds the moments of `rows` more rows, mean[c] and then m2[c] at `part`, to those of the `before` rows so far (Chan,
/// Golub, LeVeque 1979).
inline void merge_moments(int64_t before, int64_t rows, int64_t c, const double* part, double* mean, double* m2) {
  const double share = static_cast<double>(rows) / static_cast<double>(before + rows);
  const double cross = static_cast<double>(before) * share;
  for (int64_t j = 0; j < c; ++j) {
    const double delta = part[j] - mean[j];
    mean[j] += delta * share;
    m2[j] += part[c + j] + delta * delta * cross;
  }
}

}  // namespace
}  // namespace medmpi::MEDMPI_ISA
