// CLAHE: a table of new grey levels for each tile from its clipped histogram; a pixel blends the results of the four
// tiles around it. Built without contraction to fused multiply-adds: with the same order of operations every result has
// the same bits as OpenCV's. Scratch slots: 12 histogram or tables of four tiles, 13 positions, 14 tables of all tiles.
#include "ops/clahe.h"

#include "cpu/simd.h"
#include "cpu/threads.h"
#include "ops/filter.h"
#include "ops/scratch.h"

namespace medmpi::MEDMPI_ISA {
namespace {

/// Rounds to the nearest integer, halves to even; 0 <= v < 2^23.
MEDMPI_INLINE int32_t rounded(float v) {
  const float shifted = v + 8388608.0f;
  int32_t bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  return bits & 0x7fffff;
}

template <typename T>
constexpr int32_t kLevels = sizeof(T) == 1 ? 256 : 65536;

/// Counts of a tile's levels. Several histograms take turns: equal neighbours do not wait for each other.
template <typename T>
inline int32_t* count_tile(const ClaheShape& s, const ClaheGrid& g, const T* x, int64_t row, int64_t column) {
  constexpr int32_t kTurns = sizeof(T) == 1 ? 4 : 1;
  auto* counts = static_cast<int32_t*>(scratch(12, kTurns * kLevels<T> * sizeof(int32_t)));
  std::memset(counts, 0, kTurns * kLevels<T> * sizeof(int32_t));
  const int64_t j0 = column * g.tile_w, j1 = j0 + g.tile_w;
  const int64_t inside = j1 < s.w ? j1 : s.w > j0 ? s.w : j0;
  for (int64_t i = row * g.tile_h; i < (row + 1) * g.tile_h; ++i) {
    const T* line = x + border_source(Border::mirror, i, s.h) * s.w;
    int64_t j = j0;
    for (; j + kTurns <= inside; j += kTurns)
      for (int32_t k = 0; k < kTurns; ++k) ++counts[k * kLevels<T> + line[j + k]];
    for (; j < inside; ++j) ++counts[line[j]];
    for (; j < j1; ++j) ++counts[line[border_source(Border::mirror, j, s.w)]];
  }
  for (int32_t k = 1; k < kTurns; ++k)
    for (int32_t v = 0; v < kLevels<T>; ++v) counts[v] += counts[k * kLevels<T> + v];
  return counts;
}

/// Cuts the counts at the limit and spreads what was cut evenly over all levels.
template <typename T>
inline void clip(const ClaheShape& s, int64_t area, int32_t* counts) {
  constexpr int32_t n = kLevels<T>;
  const double wanted = s.clip_limit * static_cast<double>(area) / n;
  const int32_t limit = wanted < 1                           ? 1
                        : wanted < static_cast<double>(area) ? static_cast<int32_t>(wanted)
                                                             : static_cast<int32_t>(area);
  int32_t cut = 0;
  for (int32_t v = 0; v < n; ++v) {
    const int32_t over = counts[v] > limit ? counts[v] - limit : 0;
    cut += over;
    counts[v] -= over;
  }
  const int32_t share = cut / n;
  for (int32_t v = 0; v < n; ++v) counts[v] += share;
  int32_t rest = cut - share * n;
  const int32_t step = rest && n / rest > 1 ? n / rest : 1;
  for (int32_t v = 0; v < n && rest > 0; v += step, --rest) ++counts[v];
}

/// The new level of each level: its share of the tile's pixels at or below it.
template <typename T>
inline void fill_table(const ClaheShape& s, const ClaheGrid& g, const T* x, int64_t row, int64_t column, T* table) {
  const int64_t area = g.tile_h * g.tile_w;
  int32_t* counts = count_tile(s, g, x, row, column);
  if (s.clip_limit > 0) clip<T>(s, area, counts);
  const float scale = static_cast<float>(kLevels<T> - 1) / static_cast<float>(area);
  int32_t sum = 0;
  for (int32_t v = 0; v < kLevels<T>; ++v) counts[v] = sum += counts[v];
  for (int32_t v = 0; v < kLevels<T>; ++v) {
    const int32_t level = rounded(static_cast<float>(counts[v]) * scale);
    table[v] = static_cast<T>(level < kLevels<T> ? level : kLevels<T> - 1);
  }
}

/// The two tiles a pixel lies between, and how far it is from the first.
struct Between {
  int64_t low, high;
  float weight;
};
MEDMPI_INLINE Between between(int64_t i, int64_t tile, int64_t tiles) {
  const float at = static_cast<float>(i) * (1.0f / static_cast<float>(tile)) - 0.5f;
  const int64_t low = at < 0 ? -1 : static_cast<int64_t>(at);
  return {low < 0 ? 0 : low, low + 1 < tiles ? low + 1 : tiles - 1, at - static_cast<float>(low)};
}
/// The end of the run of pixels from i on that lie between the same tiles.
inline int64_t run_end(int64_t i, int64_t size, int64_t tile, int64_t tiles) {
  const Between first = between(i, tile, tiles);
  for (++i; i < size; ++i) {
    const Between next = between(i, tile, tiles);
    if (next.low != first.low || next.high != first.high) break;
  }
  return i;
}

/// Pixels [j0, j1) of rows [i0, i1), all between the same four tiles.
template <typename T>
inline void blend(const ClaheShape& s, const ClaheGrid& g, const T* x, const T* tables, int64_t i0, int64_t i1,
                  int64_t j0, int64_t j1, const float* weight, T* y) {
  const Between v = between(i0, g.tile_h, s.rows), u = between(j0, g.tile_w, s.columns);
  const T* table[4] = {
      tables + (v.low * s.columns + u.low) * kLevels<T>, tables + (v.low * s.columns + u.high) * kLevels<T>,
      tables + (v.high * s.columns + u.low) * kLevels<T>, tables + (v.high * s.columns + u.high) * kLevels<T>};
  const auto mix = [=](float a, float b, float c, float d, float p, float q) {
    const float result = (a * (1.0f - p) + b * p) * (1.0f - q) + (c * (1.0f - p) + d * p) * q;
    return static_cast<T>(rounded(result));
  };
  const uint32_t* four = nullptr;
  if constexpr (sizeof(T) == 1) {  // the four results of a level in one word: one look-up instead of four
    auto* words = static_cast<uint32_t*>(scratch(12, 256 * sizeof(uint32_t)));
    for (int k = 0; k < 256; ++k)
      words[k] = static_cast<uint32_t>(table[0][k] | table[1][k] << 8 | table[2][k] << 16) |
                 static_cast<uint32_t>(table[3][k]) << 24;
    four = words;
  }
  for (int64_t i = i0; i < i1; ++i) {
    const float q = between(i, g.tile_h, s.rows).weight;
    const T* in = x + i * s.w;
    T* out = y + i * s.w;
    for (int64_t j = j0; j < j1; ++j) {
      if constexpr (sizeof(T) == 1) {
        const auto w = static_cast<int32_t>(four[in[j]]);
        out[j] = mix(static_cast<float>(w & 255), static_cast<float>((w >> 8) & 255),
                     static_cast<float>((w >> 16) & 255), static_cast<float>((w >> 24) & 255), weight[j], q);
      } else {
        out[j] = mix(table[0][in[j]], table[1][in[j]], table[2][in[j]], table[3][in[j]], weight[j], q);
      }
    }
  }
}

template <typename T>
void equalize(const ClaheShape& s, const T* x, T* y) {
  constexpr int64_t kRows = 64;
  const ClaheGrid g(s);
  const int64_t tiles = s.rows * s.columns;
  auto* tables = static_cast<T*>(scratch(14, static_cast<size_t>(tiles * kLevels<T>) * sizeof(T)));
  auto* weight = static_cast<float*>(scratch(13, static_cast<size_t>(s.w) * sizeof(float)));
  for (int64_t j = 0; j < s.w; ++j) weight[j] = between(j, g.tile_w, s.columns).weight;
  for (int64_t image = 0; image < s.n; ++image, x += s.h * s.w, y += s.h * s.w) {
    for_chunks(tiles, 1, [=, &s, &g](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) fill_table(s, g, x, t / s.columns, t % s.columns, tables + t * kLevels<T>);
    });
    for_chunks(s.h, kRows, [=, &s, &g](int64_t begin, int64_t end) {
      for (int64_t i = begin, i1; i < end; i = i1) {
        i1 = run_end(i, end, g.tile_h, s.rows);
        for (int64_t j = 0, j1; j < s.w; j = j1) {
          j1 = run_end(j, s.w, g.tile_w, s.columns);
          blend(s, g, x, tables, i, i1, j, j1, weight, y);
        }
      }
    });
  }
}

}  // namespace

extern const ClaheOps clahe;
const ClaheOps clahe = {equalize<uint8_t>, equalize<uint16_t>};

}  // namespace medmpi::MEDMPI_ISA
