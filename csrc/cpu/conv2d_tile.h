#pragma once
// The register tile of the direct convolution: a few output pixels by one or two vectors of output channels stay in
// registers while the filter positions and input channels go by.
#include "cpu/simd.h"

namespace medmpi::MEDMPI_ISA {
namespace {

// The accumulators, the two weight vectors and one broadcast pixel must fit the register file.
constexpr int kTilePixels = kLanes == 16 ? 14 : 6;
constexpr int kPack = 16;      // floats between neighbouring pixels of a packed input
constexpr int64_t kLine = 16;  // floats of a cache line

/// One stretch of input channels at one filter position.
struct Step {
  int64_t offset;    // floats from the tile's first pixel in the packed input
  int64_t channels;  // 1 to kPack
  int64_t row;       // the weight row that the first channel meets
  int64_t channel;   // first input channel
  int64_t before;    // channels of the steps before it
};

/// What one call of a tile needs besides its pixels.
struct TileWork {
  const Step* steps;
  int64_t count;
  const float* weight;  // one row of Vectors * kLanes floats for each channel of each step
  int64_t a_row;        // floats between the tile's rows in the packed input
  int64_t y_row, y_pixel;
  const float* start;  // what a sum starts from, Vectors * kLanes floats; null: from y
  bool relu;
  const float* ahead;  // weights that are asked for ahead, so many lines at each step
  int64_t ahead_lines;
};

using Tile = void (*)(const TileWork& work, const float* a, float* y);

template <int Rows, int Columns, int Vectors>
__attribute__((noinline)) void tile(const TileWork& work, const float* a, float* y) {
  constexpr int kPixels = Rows * Columns;
  const int64_t y_row = work.y_row, y_pixel = work.y_pixel;
  const float* const start = work.start;
  Vec sum[kPixels][Vectors];
#pragma GCC unroll 32
  for (int p = 0; p < kPixels; ++p)
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v)
      sum[p][v] = load((start ? start : y + p / Columns * y_row + p % Columns * y_pixel) + v * kLanes);
  if (start)  // the outputs are first touched after all products: time enough to fetch their lines
#pragma GCC unroll 32
    for (int p = 0; p < kPixels; ++p)
#pragma GCC unroll 2
      for (int v = 0; v < Vectors; ++v)
        __builtin_prefetch(y + p / Columns * y_row + p % Columns * y_pixel + v * kLanes, 1);
  const float *weight = work.weight, *ahead = work.ahead;
  const int64_t a_row = work.a_row;
  const Step* const end = work.steps + work.count;
  for (const Step* step = work.steps; step != end; ++step) {
    for (int64_t i = work.ahead_lines; i > 0; --i, ahead += kLine) __builtin_prefetch(ahead, 0, 2);
    const float* in = a + step->offset;
    const float* const stop = in + step->channels;
    do {
      Vec w[Vectors];
#pragma GCC unroll 2
      for (int v = 0; v < Vectors; ++v) w[v] = load(weight + v * kLanes);
#pragma GCC unroll 32
      for (int p = 0; p < kPixels; ++p) {
        const Vec pixel = broadcast(in[p / Columns * a_row + p % Columns * kPack]);
#pragma GCC unroll 2
        for (int v = 0; v < Vectors; ++v) sum[p][v] += pixel * w[v];
      }
      weight += Vectors * kLanes;
    } while (++in != stop);
  }
  if (work.relu)
#pragma GCC unroll 32
    for (int p = 0; p < kPixels; ++p)
#pragma GCC unroll 2
      for (int v = 0; v < Vectors; ++v) sum[p][v] = sum[p][v] < Vec{} ? Vec{} : sum[p][v];
#pragma GCC unroll 32
  for (int p = 0; p < kPixels; ++p)
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) store(y + p / Columns * y_row + p % Columns * y_pixel + v * kLanes, sum[p][v]);
}

/// tiles[vectors - 1][columns]: one row of `columns` pixels; pair_tiles: two rows.
template <int Vectors>
struct Tiles {
  static constexpr Tile kSingle[kTilePixels + 1] = {
      nullptr,
      tile<1, 1, Vectors>,
      tile<1, 2, Vectors>,
      tile<1, 3, Vectors>,
      tile<1, 4, Vectors>,
      tile<1, 5, Vectors>,
      tile<1, 6, Vectors>,
#if defined(__AVX512F__)
      tile<1, 7, Vectors>,
      tile<1, 8, Vectors>,
      tile<1, 9, Vectors>,
      tile<1, 10, Vectors>,
      tile<1, 11, Vectors>,
      tile<1, 12, Vectors>,
      tile<1, 13, Vectors>,
      tile<1, 14, Vectors>,
#endif
  };
  static constexpr Tile kPair[kTilePixels / 2 + 1] = {
      nullptr,
      tile<2, 1, Vectors>,
      tile<2, 2, Vectors>,
      tile<2, 3, Vectors>,
#if defined(__AVX512F__)
      tile<2, 4, Vectors>,
      tile<2, 5, Vectors>,
      tile<2, 6, Vectors>,
      tile<2, 7, Vectors>,
#endif
  };
};

/// y (+)= a u: `count` packed pixels, `channels` of which begin at the first step, by weights in rows of `lanes`, one
/// or two vectors. `first`: y is set. `ahead`: weights that are asked for meanwhile, as many as these, or null.
inline void multiply_rows(const Step* steps, int64_t channels, bool first, int64_t count, int64_t lanes, const float* a,
                          const float* u, const float* ahead, float* y) {
  static const float zero[2 * kLanes] = {};
  const int64_t panels = (count + kTilePixels - 1) / kTilePixels, depth = (channels + kPack - 1) / kPack;
  TileWork work{};
  work.steps = steps;
  work.count = depth;
  work.weight = u;
  work.y_pixel = lanes;
  work.start = first ? zero : nullptr;
  work.ahead = ahead;
  work.ahead_lines = ahead ? channels * lanes / (panels * depth * kLine) + 1 : 0;
  for (int64_t i = 0, p = 0; i < panels; ++i, work.ahead += depth * work.ahead_lines * kLine) {
    const int64_t rows = (count - p) / (panels - i);
    (lanes == 2 * kLanes ? Tiles<2>::kSingle : Tiles<1>::kSingle)[rows](work, a + p * kPack, y + p * lanes);
    p += rows;
  }
}

#if defined(__AVX512F__)
constexpr int kRowTaps = 5;  // of a filter row that a tile takes together, where they are that many

/// One row of `Columns` pixels where kRowTaps steps at a time are neighbouring pixels: a pixel is broadcast once for
/// all of them, or loading would take longer than multiplying.
template <int Columns, int Vectors>
__attribute__((noinline)) void row_tile(const TileWork& work, const float* a, float* y) {
  Vec sum[Columns][Vectors];
#pragma GCC unroll 14
  for (int p = 0; p < Columns; ++p)
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) sum[p][v] = load((work.start ? work.start : y + p * work.y_pixel) + v * kLanes);
  const float* weight = work.weight;
  const Step* const end = work.steps + work.count;
  for (const Step* step = work.steps; step != end; step += kRowTaps) {
    const float* in = a + step->offset;
    const float* const stop = in + step->channels;
    const int64_t tap = step->channels * Vectors * kLanes;
    do {
      Vec w[kRowTaps][Vectors];
#pragma GCC unroll 5
      for (int t = 0; t < kRowTaps; ++t)
#pragma GCC unroll 2
        for (int v = 0; v < Vectors; ++v) w[t][v] = load(weight + t * tap + v * kLanes);
#pragma GCC unroll 18
      for (int q = 0; q < Columns + kRowTaps - 1; ++q) {
        const Vec pixel = broadcast(in[q * kPack]);
#pragma GCC unroll 5
        for (int t = 0; t < kRowTaps; ++t)
          if (q >= t && q - t < Columns)
#pragma GCC unroll 2
            for (int v = 0; v < Vectors; ++v) sum[q - t][v] += pixel * w[t][v];
      }
      weight += Vectors * kLanes;
    } while (++in != stop);
    weight += (kRowTaps - 1) * tap;
  }
  if (work.relu)
#pragma GCC unroll 14
    for (int p = 0; p < Columns; ++p)
#pragma GCC unroll 2
      for (int v = 0; v < Vectors; ++v) sum[p][v] = sum[p][v] < Vec{} ? Vec{} : sum[p][v];
#pragma GCC unroll 14
  for (int p = 0; p < Columns; ++p)
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) store(y + p * work.y_pixel + v * kLanes, sum[p][v]);
}

template <int Vectors>
constexpr int kRowPixels = Vectors == 1 ? 14 : 10;  // of such a tile: the weights take registers too

template <int Vectors>
constexpr Tile row_tile_of(int columns) {
  constexpr Tile tiles[] = {row_tile<1, Vectors>, row_tile<2, Vectors>, row_tile<3, Vectors>, row_tile<4, Vectors>,
                            row_tile<5, Vectors>, row_tile<6, Vectors>, row_tile<7, Vectors>, row_tile<8, Vectors>,
                            row_tile<9, Vectors>, row_tile<10, Vectors>};
  if constexpr (Vectors == 1) {
    constexpr Tile more[] = {row_tile<11, 1>, row_tile<12, 1>, row_tile<13, 1>, row_tile<14, 1>};
    if (columns > 10) return more[columns - 11];
  }
  return tiles[columns - 1];
}
#else
constexpr int kRowTaps = 0;
template <int>
constexpr int kRowPixels = 1;
template <int>
constexpr Tile row_tile_of(int) {
  return nullptr;
}
#endif

}  // namespace
}  // namespace medmpi::MEDMPI_ISA
