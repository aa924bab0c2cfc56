#pragma once
// The only file that knows how wide a vector is. Everything here has internal linkage: code compiled for AVX-512
// must never be the copy that the linker keeps for a machine without it.
#include <cstdint>
#include <cstring>
#if defined(__SSE__)
#include <immintrin.h>
#endif

namespace medmpi::MEDMPI_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Vec __attribute__((vector_size(4 * kLanes)));
typedef int32_t Mask __attribute__((vector_size(4 * kLanes)));

#define MEDMPI_INLINE inline __attribute__((always_inline))

MEDMPI_INLINE Vec load(const float* p) {
  Vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
MEDMPI_INLINE void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }
MEDMPI_INLINE Vec broadcast(float a) { return a - Vec{}; }

/// The first `n` < kLanes values, zero beyond.
MEDMPI_INLINE Vec load_part(const float* p, int64_t n) {
#if defined(__AVX512F__)
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1u), p);
#endif
  Vec v{};
  std::memcpy(&v, p, static_cast<size_t>(n) * sizeof(float));
  return v;
}
MEDMPI_INLINE void store_part(float* p, Vec v, int64_t n) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1u), v);
  return;
#endif
  std::memcpy(p, &v, static_cast<size_t>(n) * sizeof(float));
}

/// to[:count] = from[:count] past the caches, without reading the lines of `to` first: for arrays too large to be found
/// there by who comes next. Before another thread reads them: stream_end().
MEDMPI_INLINE void stream(float* to, const float* from, int64_t count) {
  int64_t i = 0;
#if defined(__SSE__)
  if (reinterpret_cast<uintptr_t>(to) % sizeof(Vec) == 0)
    for (; i + kLanes <= count; i += kLanes) {
#if defined(__AVX512F__)
      _mm512_stream_ps(to + i, load(from + i));
#elif defined(__AVX2__)
      _mm256_stream_ps(to + i, load(from + i));
#else
      _mm_stream_ps(to + i, load(from + i));
#endif
    }
#endif
  std::memcpy(to + i, from + i, static_cast<size_t>(count - i) * sizeof(float));
}
MEDMPI_INLINE void stream_end() {
#if defined(__SSE__)
  _mm_sfence();
#endif
}

MEDMPI_INLINE Vec max(Vec a, Vec b) { return a > b ? a : b; }
MEDMPI_INLINE Vec min(Vec a, Vec b) { return a < b ? a : b; }

}  // namespace
}  // namespace medmpi::MEDMPI_ISA
