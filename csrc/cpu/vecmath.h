#pragma once
// Elementary functions on vectors, within 2 units in the last place of float32 (polynomials of Cephes, S. Moshier).
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "cpu/simd.h"

namespace medmpi::MEDMPI_ISA {
namespace {

MEDMPI_INLINE Mask bits_of(Vec v) {
  Mask m;
  std::memcpy(&m, &v, sizeof m);
  return m;
}
MEDMPI_INLINE Vec vec_of(Mask m) {
  Vec v;
  std::memcpy(&v, &m, sizeof v);
  return v;
}

/// e^x for x <= 88; 0 below -87.3 (results that float32 cannot hold as normal numbers); NaN stays NaN.
MEDMPI_INLINE Vec exp(Vec x) {
  const Vec low = broadcast(-87.3f);
  const Vec rounder = broadcast(12582912.0f);  // 1.5 2^23: adding it rounds to a whole number
  const Vec t = (x < low ? low : x) * 1.44269504088896341f + rounder;
  const Vec n = t - rounder;
  const Vec r = (x < low ? low : x) - n * 0.693359375f + n * 2.12194440e-4f;
  Vec p = broadcast(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const Vec power = vec_of((bits_of(t) + (127 - 0x4B400000)) << 23);
  return x < low ? Vec{} : p * power;
}

/// ln x for positive normal x; NaN stays NaN.
MEDMPI_INLINE Vec log(Vec x) {
  const Mask bits = bits_of(x);
  Vec mantissa = vec_of((bits & 0x007fffff) | 0x3f000000);  // in [0.5, 1)
  Vec e = __builtin_convertvector((bits >> 23) - 126, Vec);
  const Mask small = mantissa < 0.707106781186547524f;
  e = small ? e - 1.0f : e;
  const Vec r = (small ? mantissa + mantissa : mantissa) - 1.0f;
  const Vec square = r * r;
  Vec p = broadcast(7.0376836292e-2f);
  p = p * r - 1.1514610310e-1f;
  p = p * r + 1.1676998740e-1f;
  p = p * r - 1.2420140846e-1f;
  p = p * r + 1.4249322787e-1f;
  p = p * r - 1.6668057665e-1f;
  p = p * r + 2.0000714765e-1f;
  p = p * r - 2.4999993993e-1f;
  p = p * r + 3.3333331174e-1f;
  const Vec y = p * r * square + e * -2.12194440e-4f - square * 0.5f;
  const Vec result = r + y + e * 0.693359375f;
  return x == x ? result : x;
}

typedef uint32_t Words __attribute__((vector_size(4 * kLanes)));
typedef uint64_t Wides __attribute__((vector_size(4 * kLanes)));

/// Products of the low halves. Intrinsics: the compiler has no vector form of a widening product.
MEDMPI_INLINE Wides multiply_low_halves(Wides a, Wides b) {
#if defined(__AVX512F__)
  return reinterpret_cast<Wides>(
      _mm512_maskz_mul_epu32(0xFF, reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
#elif defined(__AVX2__)
  return reinterpret_cast<Wides>(_mm256_mul_epu32(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
#elif defined(__SSE2__)
  return reinterpret_cast<Wides>(_mm_mul_epu32(reinterpret_cast<__m128i>(a), reinterpret_cast<__m128i>(b)));
#else
  return (a & 0xFFFFFFFFu) * (b & 0xFFFFFFFFu);
#endif
}

/// The halves of the 64-bit products a m.
MEDMPI_INLINE void multiply_wide(Words a, uint32_t m, Words* high, Words* low) {
  const Wides factor = Wides{} + m, upper = Wides{} + 0xFFFFFFFF00000000u;
  const Wides even = multiply_low_halves(reinterpret_cast<Wides>(a), factor);
  const Wides odd = multiply_low_halves(reinterpret_cast<Wides>(a) >> 32, factor);
  *high = reinterpret_cast<Words>((even >> 32) | (odd & upper));
  *low = reinterpret_cast<Words>((even & ~upper) | (odd << 32));
}

MEDMPI_INLINE float sum_of(Vec v) {
  float lane[kLanes];
  store(lane, v);
  for (int step = kLanes / 2; step; step /= 2)
    for (int i = 0; i < step; ++i) lane[i] += lane[i + step];
  return lane[0];
}
MEDMPI_INLINE float max_of(Vec v) {
  float lane[kLanes];
  store(lane, v);
  for (int step = kLanes / 2; step; step /= 2)
    for (int i = 0; i < step; ++i) lane[i] = lane[i] > lane[i + step] ? lane[i] : lane[i + step];
  return lane[0];
}

}  // namespace
}  // namespace medmpi::MEDMPI_ISA
