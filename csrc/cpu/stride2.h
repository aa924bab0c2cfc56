#pragma once
// A fast algorithm for 3x3 filters of stride 2. In one dimension two outputs are
//   y0 = g0 d0 + g1 d1 + g2 d2 and y1 = g0 d2 + g1 d3 + g2 d4.
// The outer taps are a filter of two taps over the even inputs, which Winograd's F(2, 2) computes by 3 products instead
// of 4: (d0 - d2) g0, d2 (g0 + g2) and (d4 - d2) g2. With d1 g1 and d3 g1 that makes 5 for 6, and in two dimensions 25
// for 36, by additions alone: rounding errors stay those of a direct convolution. The gradient for the input takes the
// same products of three neighbouring dy for four dx. Points that meet the same weights, g1 in either dimension, lie
// together and share a matrix product, so that 25 points make 16 classes.
#include "cpu/conv2d_tile.h"
#include "cpu/simd.h"

namespace medmpi::MEDMPI_ISA {
namespace {

constexpr int64_t kPoints = 25, kClasses = 16;

/// Points before those of a class of weights, and of it: the last class of a dimension, g1, has two points.
constexpr int64_t points_before(int64_t q) { return q < 12 ? q / 4 * 5 + q % 4 : 15 + 2 * (q - 12); }
constexpr int64_t points_of(int64_t q) { return (q / 4 == 3 ? 2 : 1) * (q % 4 == 3 ? 2 : 1); }
constexpr int64_t class_of(int64_t i, int64_t j) { return 4 * (i < 3 ? i : 3) + (j < 3 ? j : 3); }
constexpr int64_t copy_of(int64_t i, int64_t j) { return (i == 4 ? (j >= 3 ? 2 : 1) : 0) + (j == 4 ? 1 : 0); }

/// The row of V and M where the tiles of a class begin; a row apart, or streams would meet in one cache set.
constexpr int64_t class_row(int64_t q, int64_t tiles) { return points_before(q) * tiles + q; }
constexpr int64_t all_rows(int64_t tiles) { return kPoints * tiles + kClasses; }

/// What a tile reads and writes in one dimension, and its transforms.
struct Forward {
  static constexpr int kIn = 5, kInStep = 4, kOut = 2;
  static MEDMPI_INLINE void input(const Vec (&d)[5], Vec (&o)[5]) {
    o[0] = d[0] - d[2], o[1] = d[2], o[2] = d[4] - d[2], o[3] = d[1], o[4] = d[3];
  }
  static MEDMPI_INLINE void output(const Vec (&m)[5], Vec (&o)[2]) {
    o[0] = m[0] + m[1] + m[3], o[1] = m[1] + m[2] + m[4];
  }
};
/// Turned filters: class 0 is the last tap. The first of the four dx meets g1 alone.
struct Backward {
  static constexpr int kIn = 3, kInStep = 2, kOut = 4;
  static MEDMPI_INLINE void input(const Vec (&e)[3], Vec (&o)[5]) {
    o[0] = e[0] - e[1], o[1] = e[1], o[2] = e[2] - e[1], o[3] = e[0], o[4] = e[1];
  }
  static MEDMPI_INLINE void output(const Vec (&m)[5], Vec (&o)[4]) {
    o[0] = m[3], o[1] = m[0] + m[1], o[2] = m[4], o[3] = m[1] + m[2];
  }
};

/// The four classes of a filter of three taps.
MEDMPI_INLINE void transform_taps(const Vec (&g)[3], Vec (&o)[4]) {
  o[0] = g[0], o[1] = g[0] + g[2], o[2] = g[2], o[3] = g[1];
}

/// V of one tile for `vectors` vectors of channels; pixels and rows of x, points and 16 channels of V at these
/// distances.
template <typename Way>
__attribute__((noinline)) void transform_tile(const float* x, int64_t row, int64_t pixel, int64_t vectors, float* v,
                                              int64_t tiles, int64_t block) {
  constexpr int kIn = Way::kIn;
  const int64_t point = tiles * kPack;
  for (int64_t c = 0; c < vectors; ++c) {
    const float* in = x + c * kLanes;
    float* const out = v + c * kLanes / kPack * block + c * kLanes % kPack;
    float* const fifth[5] = {out, out + 5 * point, out + 10 * point, out + 15 * point, out + 20 * point};
    Vec rows[kIn][5];
#pragma GCC unroll 5
    for (int i = 0; i < kIn; ++i, in += row) {
      Vec d[kIn];
#pragma GCC unroll 5
      for (int j = 0; j < kIn; ++j) d[j] = load(in + j * pixel);
#pragma GCC unroll 5
      for (int j = kIn - Way::kInStep; j < kIn; ++j) __builtin_prefetch(in + (j + Way::kInStep) * pixel);
      Way::input(d, rows[i]);
    }
#pragma GCC unroll 5
    for (int j = 0; j < 5; ++j) {
      Vec d[kIn], o[5];
#pragma GCC unroll 5
      for (int i = 0; i < kIn; ++i) d[i] = rows[i][j];
      Way::input(d, o);
#pragma GCC unroll 5
      for (int i = 0; i < 5; ++i) {
        const int64_t q = class_of(i, j), n = points_before(q) + copy_of(i, j);
        store(fifth[n / 5] + n % 5 * point + q * kPack, o[i]);
      }
    }
  }
}

/// One tile of outputs for a vector of output channels; their pixels and rows at these distances.
template <typename Way>
__attribute__((noinline)) void transform_products(const float* m, int64_t lanes, int64_t tiles, Vec bias, bool relu,
                                                  float* y, int64_t row, int64_t pixel) {
  constexpr int kOut = Way::kOut;
  const int64_t point = tiles * lanes;
  const float* const fifth[5] = {m, m + 5 * point, m + 10 * point, m + 15 * point, m + 20 * point};
#pragma GCC unroll 4
  for (int i = 0; i < kOut; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < kOut; ++j) __builtin_prefetch(y + i * row + j * pixel, 1);
  Vec half[5][kOut];
#pragma GCC unroll 5
  for (int i = 0; i < 5; ++i) {
    Vec a[5];
#pragma GCC unroll 5
    for (int j = 0; j < 5; ++j) {
      const int64_t q = class_of(i, j), n = points_before(q) + copy_of(i, j);
      a[j] = load(fifth[n / 5] + n % 5 * point + q * lanes);
    }
    Way::output(a, half[i]);
  }
#pragma GCC unroll 4
  for (int j = 0; j < kOut; ++j) {
    Vec a[5], o[kOut];
#pragma GCC unroll 5
    for (int i = 0; i < 5; ++i) a[i] = half[i][j];
    Way::output(a, o);
#pragma GCC unroll 4
    for (int i = 0; i < kOut; ++i) {
      o[i] += bias;
      if (relu) o[i] = o[i] < Vec{} ? Vec{} : o[i];
      store(y + i * row + j * pixel, o[i]);
    }
  }
}

}  // namespace
}  // namespace medmpi::MEDMPI_ISA
