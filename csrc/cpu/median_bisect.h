#pragma once
// Medians of any window by bisection on the value, a few vectors of results at a time: the number of window values
// above a guess tells which half holds the median. The guesses start from the windows' smallest and largest values.
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include <type_traits>

#include "cpu/median_network.h"
#include "cpu/median_tile.h"

namespace medmpi::MEDMPI_ISA {
namespace {

/// count + (x > limit) in every lane.
template <typename V>
MEDMPI_INLINE V count_above(V count, V x, V limit) {
#if defined(__AVX512BW__)
  const auto a = reinterpret_cast<__m512i>(x), b = reinterpret_cast<__m512i>(limit),
             n = reinterpret_cast<__m512i>(count);
  if constexpr (sizeof(x[0]) == 1)
    return reinterpret_cast<V>(_mm512_mask_sub_epi8(n, _mm512_cmpgt_epi8_mask(a, b), n, _mm512_set1_epi8(-1)));
  else if constexpr (sizeof(x[0]) == 2)
    return reinterpret_cast<V>(_mm512_mask_sub_epi16(n, _mm512_cmpgt_epi16_mask(a, b), n, _mm512_set1_epi16(-1)));
  else
    return reinterpret_cast<V>(_mm512_mask_sub_epi32(n, _mm512_cmpgt_epi32_mask(a, b), n, _mm512_set1_epi32(-1)));
#else
  return count - (x > limit);
#endif
}

/// True where some lane of a lies below b's.
template <typename V>
MEDMPI_INLINE bool any_below(V a, V b) {
  const auto below = reinterpret_cast<Mask>(V(a < b));
  int32_t any = 0;
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) any |= below[i];
  return any != 0;
}

constexpr int kBisected = 4;  // vectors of results at a time

/// `Count` vectors of medians from windows of `taps` values, `offset[t]` from `x`; the first `count` values go to y.
template <int Count, typename T>
MEDMPI_INLINE void bisect(const typename KeyOf<T>::Type* x, const int64_t* offset, int64_t taps, T* y, int64_t count) {
  using Key = typename KeyOf<T>::Type;
  using V = typename Keys<Key>::Type;
  using Unsigned = std::make_unsigned_t<Key>;
  constexpr int64_t kStep = Keys<Key>::kWidth;
  // counts start at the smallest number, so that unsigned ones fit
  constexpr Key kZero = std::numeric_limits<Key>::min();
  const V half = V{} + static_cast<Key>(static_cast<Unsigned>(static_cast<Unsigned>(kZero) + taps / 2));
  V low[Count], high[Count];
#pragma GCC unroll 4
  for (int u = 0; u < Count; ++u) low[u] = high[u] = load_keys(x + offset[0] + u * kStep);
  for (int64_t t = 1; t < taps; ++t)
#pragma GCC unroll 4
    for (int u = 0; u < Count; ++u) {
      const V v = load_keys(x + offset[t] + u * kStep);
      low[u] = lower(low[u], v), high[u] = upper(high[u], v);
    }
  for (;;) {
    bool open = false;
#pragma GCC unroll 4
    for (int u = 0; u < Count; ++u) open |= any_below(low[u], high[u]);
    if (!open) break;
    V guess[Count], above[Count];
#pragma GCC unroll 4
    for (int u = 0; u < Count; ++u) {
      guess[u] = (low[u] & high[u]) + ((low[u] ^ high[u]) >> 1);
      above[u] = V{} + kZero;
    }
    for (int64_t t = 0; t < taps; ++t)
#pragma GCC unroll 4
      for (int u = 0; u < Count; ++u) above[u] = count_above(above[u], load_keys(x + offset[t] + u * kStep), guess[u]);
#pragma GCC unroll 4
    for (int u = 0; u < Count; ++u) {
      const auto right = above[u] > half;
      // a lane whose ends have met stays where it is: none of its values lies above and below at once
      high[u] = right ? high[u] : guess[u];
      low[u] = right ? guess[u] + 1 : low[u];
    }
  }
#pragma GCC unroll 4
  for (int u = 0; u < Count; ++u)
    if (u * kStep < count) store_values(low[u], y + u * kStep, count - u * kStep);
}

/// The medians of line i of a tile.
template <typename T>
inline void bisect_line(const Tile<T>& tile, int64_t i, const int64_t* offset, int64_t taps, T* y) {
  constexpr int64_t kStep = Keys<typename Tile<T>::Key>::kWidth;
  const auto* x = tile.line(0, i);
  int64_t j = 0;
  for (; j + (kBisected - 1) * kStep < tile.cols; j += kBisected * kStep)
    bisect<kBisected>(x + j, offset, taps, y + j, tile.cols - j);
  for (; j < tile.cols; j += kStep) bisect<1>(x + j, offset, taps, y + j, tile.cols - j);
}

/// Where a window's values lie relative to its first.
template <typename T>
inline void find_offsets(const Tile<T>& tile, int64_t* offset) {
  const MedianShape& s = tile.s;
  for (int64_t z = 0; z <= 2 * s.rz; ++z)
    for (int64_t y = 0; y <= 2 * s.ry; ++y)
      for (int64_t x = 0; x <= 2 * s.rx; ++x) *offset++ = (z * tile.height + y) * tile.pitch + x * s.channels;
}

}  // namespace
}  // namespace medmpi::MEDMPI_ISA
