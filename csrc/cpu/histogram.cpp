// Histograms. Every thread counts in tables of its own and adds them to the result; whole numbers, so that the order
// does not matter. Several tables take turns: equal neighbours do not wait for each other. Scratch slot 12.
#include "ops/histogram.h"

#include <limits>

#include "cpu/simd.h"
#include "cpu/threads.h"
#include "ops/scratch.h"

namespace medmpi::MEDMPI_ISA {
namespace {

constexpr int64_t kBlock = 512;               // values whose bins are found before they are counted
constexpr int64_t kChunk = int64_t{1} << 16;  // values that a thread takes at a time; counts of 32 bits hold more

/// Sums over chunks of what count(begin, end, tables) leaves in `turns` tables of `bins` counts.
template <typename Count>
inline void sum_counts(int64_t n, int64_t bins, int64_t turns, int64_t* counts, const Count& count) {
  std::memset(counts, 0, static_cast<size_t>(bins) * sizeof *counts);
  const int64_t large = bins > kBlock ? 32 * kChunk : kChunk;  // large tables should not be added often
  for_chunks(n, large, [=, &count](int64_t begin, int64_t end) {
    const auto bytes = static_cast<size_t>(turns * bins) * sizeof(uint32_t);
    auto* tables = static_cast<uint32_t*>(scratch(12, bytes));
    std::memset(tables, 0, bytes);
    count(begin, end, tables);
    for (int64_t t = 1; t < turns; ++t)
      for (int64_t v = 0; v < bins; ++v) tables[v] += tables[t * bins + v];
#pragma omp critical(medmpi_histogram)
    for (int64_t v = 0; v < bins; ++v) counts[v] += tables[v];
  });
}

void count_u8(int64_t n, const uint8_t* x, int64_t* counts) {
  sum_counts(n, 256, 8, counts, [x](int64_t i, int64_t end, uint32_t* table) {
    for (; i + 8 <= end; i += 8) {
      uint64_t v;
      std::memcpy(&v, x + i, sizeof v);
#pragma GCC unroll 8
      for (int k = 0; k < 8; ++k) ++table[256 * k + static_cast<int64_t>((v >> (8 * k)) & 255)];
    }
    for (; i < end; ++i) ++table[x[i]];
  });
}

void count_u16(int64_t n, const uint16_t* x, int64_t* counts) {
  sum_counts(n, 65536, 1, counts, [x](int64_t i, int64_t end, uint32_t* table) {
    for (; i < end; ++i) ++table[x[i]];
  });
}

/// The bin of a value in [low, high], `bins` for others: a guess, put right by the edges.
MEDMPI_INLINE int32_t bin_of(float v, float low, float high, float scale, int32_t bins, const float* edges) {
  const bool inside = v >= low && v <= high;
  const float at = inside ? (v - low) * scale : 0.0f, most = static_cast<float>(bins - 1);
  auto bin = static_cast<int32_t>(at < most ? at : most);  // NaN, of a range that float32 cannot hold, is the last
  // both edges are read whatever the comparisons say: the compiler can make vectors of this
  bin -= static_cast<int32_t>((bin > 0) & (v < edges[bin]));
  bin += static_cast<int32_t>((bin < bins - 1) & (v >= edges[bin + 1]));
  return inside ? bin : bins;
}

void count_f32(int64_t n, const float* x, int64_t bins, const float* edges, int64_t* counts) {
  const float low = edges[0], high = edges[bins], scale = static_cast<float>(bins) / (high - low);
  // one bin more than asked for takes what lies outside
  const auto last = static_cast<int32_t>(bins);
  sum_counts(n, bins, 1, counts, [=](int64_t begin, int64_t end, uint32_t* table) {
    const int64_t turns = bins <= kBlock ? 4 : 1, pitch = bins + 1;
    auto* turn = static_cast<uint32_t*>(scratch(13, static_cast<size_t>(turns * pitch) * sizeof(uint32_t)));
    std::memset(turn, 0, static_cast<size_t>(turns * pitch) * sizeof(uint32_t));
    int32_t found[kBlock];
    for (int64_t i = begin; i < end; i += kBlock) {
      const int64_t count = end - i < kBlock ? end - i : kBlock;
      for (int64_t k = 0; k < count; ++k) found[k] = bin_of(x[i + k], low, high, scale, last, edges);
      int64_t k = 0;
      for (; turns == 4 && k + 4 <= count; k += 4)
        for (int64_t t = 0; t < 4; ++t) ++turn[t * pitch + found[k + t]];
      for (; k < count; ++k) ++turn[found[k]];
    }
    for (int64_t t = 0; t < turns; ++t)
      for (int64_t v = 0; v < bins; ++v) table[v] += turn[t * pitch + v];
  });
}

void range_f32(int64_t n, const float* x, float* low, float* high) {
  float least = std::numeric_limits<float>::infinity(), most = -least;
  bool nan = false;
  for_chunks(n, kChunk, [=, &least, &most, &nan](int64_t begin, int64_t end) {
    Vec a = broadcast(x[begin]), b = a;
    Mask odd{};
    int64_t i = begin;
    for (; i + kLanes <= end; i += kLanes) {
      const Vec v = load(x + i);
      a = min(a, v), b = max(b, v), odd |= v != v;
    }
    float lowest = x[begin], highest = lowest;
    bool bad = false;
    for (int k = 0; k < kLanes; ++k) {
      lowest = a[k] < lowest ? a[k] : lowest, highest = b[k] > highest ? b[k] : highest;
      bad |= odd[k] != 0;
    }
    for (; i < end; ++i) {
      lowest = x[i] < lowest ? x[i] : lowest, highest = x[i] > highest ? x[i] : highest;
      bad |= x[i] != x[i];
    }
#pragma omp critical(medmpi_histogram)
    {
      least = lowest < least ? lowest : least, most = highest > most ? highest : most;
      nan |= bad || lowest != lowest;
    }
  });
  *low = nan ? std::numeric_limits<float>::quiet_NaN() : least;
  *high = nan ? std::numeric_limits<float>::quiet_NaN() : most;
}

}  // namespace

extern const HistogramOps histogram;
const HistogramOps histogram = {count_u8, count_u16, count_f32, range_f32};

}  // namespace medmpi::MEDMPI_ISA
