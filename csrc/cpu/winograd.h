#pragma once
// The one-dimensional transforms of Winograd's F(m, r), m outputs of a filter of r taps from m + r - 1 = 6 inputs, with
// the points 0, +-5/8, +-3/2 and infinity, whose rounding errors are a third of those of the usual 0, +-1, +-2 (Lavin
// and Gray, 2015). y = A^T [(G g) * (B^T d)]. The points alone make B^T; G and A^T have as many columns and rows as
// there are taps and outputs. F(4, 3) and F(2, 5) are convolutions, F(3, 4) and F(5, 2) the gradients of their filters.
#include "cpu/simd.h"

namespace medmpi::MEDMPI_ISA {
namespace {

constexpr int kWinogradInputs = 6;  // of a tile in one dimension

constexpr float kA = 0.625f, kB = 1.5f, kA2 = kA * kA, kB2 = kB * kB, kAB = kA2 * kB2, kSum = kA2 + kB2;

/// B^T d.
MEDMPI_INLINE void winograd_input(const Vec (&d)[6], Vec (&o)[6]) {
  const Vec even_a = d[4] - kB2 * d[2], odd_a = kA * (d[3] - kB2 * d[1]);
  const Vec even_b = d[4] - kA2 * d[2], odd_b = kB * (d[3] - kA2 * d[1]);
  o[0] = kAB * d[0] + (d[4] - kSum * d[2]);
  o[1] = even_a + odd_a;
  o[2] = even_a - odd_a;
  o[3] = even_b + odd_b;
  o[4] = even_b - odd_b;
  o[5] = kAB * d[1] + (d[5] - kSum * d[3]);
}

/// A^T m for 2 to 5 outputs.
template <int Outputs>
MEDMPI_INLINE void winograd_output(const Vec (&m)[6], Vec (&o)[Outputs]) {
  static_assert(Outputs >= 2 && Outputs <= 5);
  const Vec p = m[1] + m[2], q = m[1] - m[2], r = m[3] + m[4], s = m[3] - m[4];
  o[0] = m[0] + (p + r);
  o[1] = kB * s + kA * q;
  if constexpr (Outputs > 2) o[2] = kB2 * r + kA2 * p;
  if constexpr (Outputs > 3) o[3] = kB2 * kB * s + kA2 * kA * q;
  if constexpr (Outputs > 4) o[4] = kB2 * kB2 * r + kA2 * kA2 * p;
  o[Outputs - 1] = m[5] + o[Outputs - 1];
}

/// G g for 2 to 5 taps.
template <int Taps>
MEDMPI_INLINE void winograd_filter(const Vec (&g)[Taps], Vec (&o)[6]) {
  static_assert(Taps >= 2 && Taps <= 5);
  constexpr float zero = 1.0f / kAB, a = 1.0f / (2 * kA2 * (kA2 - kB2)), b = 1.0f / (2 * kB2 * (kB2 - kA2));
  Vec even_a = g[0], odd_a = g[1], even_b = g[0], odd_b = g[1];
  if constexpr (Taps > 4) even_a += kA2 * (g[2] + kA2 * g[4]), even_b += kB2 * (g[2] + kB2 * g[4]);
  if constexpr (Taps == 3 || Taps == 4) even_a += kA2 * g[2], even_b += kB2 * g[2];
  if constexpr (Taps > 3) odd_a += kA2 * g[3], odd_b += kB2 * g[3];
  even_a *= a, odd_a *= a * kA, even_b *= b, odd_b *= b * kB;
  o[0] = zero * g[0];
  o[1] = even_a + odd_a;
  o[2] = even_a - odd_a;
  o[3] = even_b + odd_b;
  o[4] = even_b - odd_b;
  o[5] = g[Taps - 1];
}

}  // namespace
}  // namespace medmpi::MEDMPI_ISA
