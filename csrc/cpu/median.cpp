// Median filters: sorting networks for 3x3, 5x5 and 3x3x3, sliding histograms for uint8 windows of more than 255
// values, bisection for all others. Scratch slots: 12 tile or line of constants, 13 sorted columns, offsets or
// histograms.
#include "ops/median.h"

#include "cpu/median_bisect.h"
#include "cpu/median_histogram.h"
#include "cpu/median_network.h"
#include "cpu/threads.h"

namespace medmpi::MEDMPI_ISA {
namespace {

/// Strips of `kRows` lines go to threads.
template <typename Window, typename T>
void by_network(const MedianShape& s, const T* x, T* y) {
  constexpr int64_t kRows = 32;
  const int64_t plane = s.height * s.width * s.channels, down = (s.height + kRows - 1) / kRows;
  for_chunks(s.outer * s.depth * down, 1, [=, &s](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const int64_t at = b / down, z = at % s.depth, strip = b % down;
      network_lines<Window>(s, x + (at - z) * plane, z, strip * s.height / down, (strip + 1) * s.height / down,
                            y + at * plane);
    }
  });
}

/// Calls filter(tile, results) for tiles of about rows x cols results.
template <typename T, typename Filter>
void for_tiles(const MedianShape& s, int64_t rows, int64_t cols, const T* x, T* y, const Filter& filter) {
  const int64_t width = s.width * s.channels, plane = s.height * width, halo = 2 * s.rx * s.channels;
  const int64_t wide = 2 * halo > cols ? 2 * halo : cols;  // wider than what is copied around it
  const int64_t across = (width + wide - 1) / wide, down = (s.height + rows - 1) / rows;
  for_chunks(s.outer * s.depth * down * across, 1, [=, &s, &filter](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const int64_t part = b % across, strip = b / across % down, at = b / across / down;
      const int64_t j0 = part * width / across, j1 = (part + 1) * width / across;
      const int64_t i0 = strip * s.height / down, i1 = (strip + 1) * s.height / down;
      Tile<T> tile(s, x + at / s.depth * s.depth * plane, at % s.depth, i0, i1 - i0, j0, j1 - j0);
      filter(tile, y + at * plane + i0 * width + j0);
    }
  });
}

void by_histogram(const MedianShape& s, const uint8_t* x, uint8_t* y) {
  // a tile starts its histograms anew: it should be tall; those of its columns should stay in the second-level cache
  for_tiles(s, 64 + 4 * s.ry, 512, x, y, [&s](Tile<uint8_t>& tile, uint8_t* to) {
    ColumnHistograms h(tile.columns);
    for (int64_t i = 0; i < tile.rows; ++i) {
      tile.fill_for(i);
      histogram_line(tile, i, h, to + i * s.width * s.channels);
    }
  });
}

template <typename T>
void by_bisection(const MedianShape& s, const T* x, T* y) {
  for_tiles(s, 32, 1024 / static_cast<int64_t>(sizeof(T)), x, y, [&s](Tile<T>& tile, T* to) {
    auto* offset = static_cast<int64_t*>(scratch(13, static_cast<size_t>(s.window()) * sizeof(int64_t)));
    find_offsets(tile, offset);
    for (int64_t i = 0; i < tile.rows; ++i) {
      tile.fill_for(i);
      bisect_line(tile, i, offset, s.window(), to + i * s.width * s.channels);
    }
  });
}

template <typename T>
void median(const MedianShape& s, const T* x, T* y) {
  const bool flat = s.rz == 0;
  if (flat && s.ry == 1 && s.rx == 1) return by_network<Window3>(s, x, y);
  if (flat && s.ry == 2 && s.rx == 2) return by_network<Window5>(s, x, y);
  if (s.rz == 1 && s.ry == 1 && s.rx == 1) return by_network<Window333>(s, x, y);
  if constexpr (sizeof(T) == 1)
    if (s.window() > 255) return by_histogram(s, x, y);
  by_bisection(s, x, y);
}

}  // namespace

extern const MedianOps median_filter;
const MedianOps median_filter = {median<uint8_t>, median<uint16_t>, median<float>};

}  // namespace medmpi::MEDMPI_ISA
