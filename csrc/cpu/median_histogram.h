#pragma once
// Medians of large uint8 windows by sliding histograms: S. Perreault, P. Hebert, "Median filtering in constant time",
// IEEE Transactions on Image Processing 16(9), 2007. Histograms have two levels of 16 bins, and here they are
// cumulative: one vector addition counts a value, and one comparison finds the bin of the median. Scratch slot 13.
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "cpu/median_tile.h"

namespace medmpi::MEDMPI_ISA {
namespace {

constexpr int64_t kBins = 16;
typedef uint16_t Bins __attribute__((vector_size(2 * kBins)));

/// The number of bins at or below `rank`: the first one above it.
MEDMPI_INLINE int64_t first_above(const uint16_t* bins, uint16_t rank) {
#if defined(__SSE2__)
  const __m128i limit = _mm_set1_epi16(static_cast<int16_t>(rank)), zero = _mm_setzero_si128();
  const __m128i left = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bins));
  const __m128i right = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bins + 8));
  const __m128i below = _mm_packs_epi16(_mm_cmpeq_epi16(_mm_subs_epu16(left, limit), zero),
                                        _mm_cmpeq_epi16(_mm_subs_epu16(right, limit), zero));
  return __builtin_ctz(~static_cast<unsigned>(_mm_movemask_epi8(below)));
#else
  int64_t found = 0;
  while (found < kBins - 1 && bins[found] <= rank) ++found;
  return found;
#endif
}

/// The cumulative histograms of a tile's columns.
struct ColumnHistograms {
  Bins* coarse;  // [column]: values whose upper four bits are at most the bin's
  Bins* fine;    // [bin][column]: of the values of a coarse bin, those whose lower four bits are at most the bin's
  int64_t columns;
  Bins step[kBins];  // what a value of each bin adds

  explicit ColumnHistograms(int64_t n)
      : coarse(static_cast<Bins*>(scratch(13, static_cast<size_t>(n * (kBins + 1)) * sizeof(Bins)))),
        fine(coarse + n),
        columns(n) {
    for (int64_t k = 0; k < kBins; ++k)
      for (int64_t bin = 0; bin < kBins; ++bin) step[k][bin] = bin >= k;
    std::memset(static_cast<void*>(coarse), 0, static_cast<size_t>(n * (kBins + 1)) * sizeof(Bins));
  }

  void add(const int8_t* line) {
    for (int64_t j = 0; j < columns; ++j) {
      const int64_t v = static_cast<uint8_t>(line[j] ^ 0x80);
      coarse[j] += step[v >> 4];
      fine[(v >> 4) * columns + j] += step[v & 15];
    }
  }
  void replace(const int8_t* gone, const int8_t* line) {
    for (int64_t j = 0; j < columns; ++j) {
      const int64_t u = static_cast<uint8_t>(gone[j] ^ 0x80), v = static_cast<uint8_t>(line[j] ^ 0x80);
      coarse[j] += step[v >> 4] - step[u >> 4];
      fine[(u >> 4) * columns + j] -= step[u & 15];
      fine[(v >> 4) * columns + j] += step[v & 15];
    }
  }
};

/// The medians of one channel of a line, given the histograms of its columns.
inline void histogram_channel(const MedianShape& s, const ColumnHistograms& h, int64_t channel, int64_t cols,
                              uint8_t* y) {
  const int64_t c = s.channels, width = 2 * s.rx + 1;
  const auto middle = static_cast<uint16_t>(s.window() / 2);
  const Bins* column = h.coarse + channel;
  Bins coarse{}, fine[kBins];
  int64_t counted[kBins];  // fine[bin] holds the `width` columns before this one
  for (int64_t bin = 0; bin < kBins; ++bin) counted[bin] = 0;
  for (int64_t t = 0; t < width - 1; ++t) coarse += column[t * c];
  uint16_t found[kBins + 1] = {};
  for (int64_t i = 0, j = channel; j < cols; ++i, j += c) {
    coarse += column[(i + width - 1) * c];
    std::memcpy(found + 1, &coarse, sizeof coarse);
    coarse -= column[i * c];
    const int64_t bin = first_above(found + 1, middle);
    const auto rank = static_cast<uint16_t>(middle - found[bin]);
    const Bins* from = h.fine + bin * h.columns + channel;
    Bins sum = fine[bin];
    if (2 * (i + width - counted[bin]) >= width) {  // more columns changed than stayed: count anew
      sum = Bins{};
      for (int64_t t = i; t < i + width; ++t) sum += from[t * c];
    } else {
      for (int64_t t = counted[bin]; t < i + width; ++t) sum += from[t * c] - from[(t - width) * c];
    }
    fine[bin] = sum;
    counted[bin] = i + width;
    uint16_t level[kBins];
    std::memcpy(level, &sum, sizeof sum);
    y[j] = static_cast<uint8_t>(bin * kBins + first_above(level, rank));
  }
}

/// The medians of line i of a tile, from the histograms that line i - 1 left.
inline void histogram_line(const Tile<uint8_t>& tile, int64_t i, ColumnHistograms& h, uint8_t* y) {
  const MedianShape& s = tile.s;
  for (int64_t z = 0; z <= 2 * s.rz; ++z) {
    if (i > 0) h.replace(tile.line(z, i - 1), tile.line(z, i + 2 * s.ry));
    for (int64_t t = 0; t <= 2 * s.ry && i == 0; ++t) h.add(tile.line(z, t));
  }
  for (int64_t k = 0; k < s.channels && k < tile.cols; ++k) histogram_channel(s, h, k, tile.cols, y);
}

}  // namespace
}  // namespace medmpi::MEDMPI_ISA
