#pragma once
// The one-dimensional transforms of Winograd's F(4, 3) with the points 0, +-5/8, +-3/2 and infinity, whose rounding
// errors are a third of those of the usual 0, +-1, +-2 (Lavin and Gray, 2015). y = A^T [(G g) * (B^T d)].
#include "cpu/simd.h"

namespace medmpi::MEDMPI_ISA {
namespace {

constexpr int kWinogradInputs = 6;  // inputs of a tile in one dimension; it has 4 outputs

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

/// A^T m.
MEDMPI_INLINE void winograd_output(const Vec (&m)[6], Vec (&o)[4]) {
  const Vec p = m[1] + m[2], q = m[1] - m[2], r = m[3] + m[4], s = m[3] - m[4];
  o[0] = m[0] + (p + r);
  o[1] = kB * s + kA * q;
  o[2] = kB2 * r + kA2 * p;
  o[3] = m[5] + (kB2 * kB * s + kA2 * kA * q);
}

/// G g.
MEDMPI_INLINE void winograd_filter(const Vec (&g)[3], Vec (&o)[6]) {
  constexpr float zero = 1.0f / kAB, a = 1.0f / (2 * kA2 * (kA2 - kB2)), b = 1.0f / (2 * kB2 * (kB2 - kA2));
  const Vec even_a = a * (kA2 * g[2] + g[0]), odd_a = a * kA * g[1];
  const Vec even_b = b * (kB2 * g[2] + g[0]), odd_b = b * kB * g[1];
  o[0] = zero * g[0];
  o[1] = even_a + odd_a;
  o[2] = even_a - odd_a;
  o[3] = even_b + odd_b;
  o[4] = even_b - odd_b;
  o[5] = g[2];
}

/// The same for the gradient of the filter, F(3, 4): G g of 4 values of dy in the place of the filter's 3 ...
MEDMPI_INLINE void winograd_gradient(const Vec (&g)[4], Vec (&o)[6]) {
  constexpr float zero = 1.0f / kAB, a = 1.0f / (2 * kA2 * (kA2 - kB2)), b = 1.0f / (2 * kB2 * (kB2 - kA2));
  const Vec even_a = a * (g[0] + kA2 * g[2]), odd_a = (kA * a) * (g[1] + kA2 * g[3]);
  const Vec even_b = b * (g[0] + kB2 * g[2]), odd_b = (kB * b) * (g[1] + kB2 * g[3]);
  o[0] = zero * g[0];
  o[1] = even_a + odd_a;
  o[2] = even_a - odd_a;
  o[3] = even_b + odd_b;
  o[4] = even_b - odd_b;
  o[5] = g[3];
}

/// ... and A^T m with 3 results.
MEDMPI_INLINE void winograd_taps(const Vec (&m)[6], Vec (&o)[3]) {
  const Vec p = m[1] + m[2], q = m[1] - m[2], r = m[3] + m[4], s = m[3] - m[4];
  o[0] = m[0] + (p + r);
  o[1] = kA * q + kB * s;
  o[2] = m[5] + (kA2 * p + kB2 * r);
}

}  // namespace
}  // namespace medmpi::MEDMPI_ISA
