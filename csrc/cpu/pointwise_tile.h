#pragma once
// The register tile of a convolution by a 1x1 filter: up to kTileRows pixels by one or two vectors of output channels.
#include "cpu/tile.h"

namespace medmpi::MEDMPI_ISA {
namespace {

constexpr int64_t kStep = 16;  // channels of a packed pixel that lie side by side
constexpr int64_t kTileStep = kTileRows * kStep;
constexpr int64_t kLine = 16;  // floats

/// What one register tile needs.
struct TileWork {
  const float* a;  // pixels, a_row floats apart; each next step of their channels lies a_step further on
  int64_t a_row, a_step;
  const float* b;  // packed weights
  int64_t depth;
  float* const* y;  // the tile's rows
  int64_t column, columns;
  const float* start;   // what a sum starts from; null: y
  const float* before;  // added to the sums, of the layout of y_all; or null
  const float* y_all;
  int64_t before_ahead;  // columns of it that are asked for: those of the next tile to the right too
  bool relu;
  int64_t y_ahead;                 // rows of y asked for at each step
  const float* const* next;        // pixels that are asked for ahead, one step of each at each step
  int64_t next_count, next_first;  // next_first: the step's first channel
  const float* ahead;              // weights that are asked for ahead, so many lines at each step
  int64_t ahead_count;
};

using Tile = void (*)(const TileWork& work);

/// sum[i] += a row's `Channels` values times as many rows of weights. Rows lie `row` floats apart; three share a base,
/// so that a few registers address them all.
template <int Channels, int Rows, int Vecs>
MEDMPI_INLINE void multiply(Vec (&sum)[Rows][Vecs], const float* const (&base)[(Rows + 2) / 3], int64_t row, int64_t at,
                            const float* b) {
#pragma GCC unroll 4
  for (int c = 0; c < Channels; ++c, b += Vecs * kLanes) {
    asm volatile("" ::: "memory");  // no load is moved up: it would take a register from the sums
    Vec w[Vecs];
#pragma GCC unroll 2
    for (int v = 0; v < Vecs; ++v) w[v] = load(b + v * kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) {
      const Vec pixel = broadcast((base[i / 3] + i % 3 * row)[at + c]);
#pragma GCC unroll 2
      for (int v = 0; v < Vecs; ++v) sum[i][v] += pixel * w[v];
    }
  }
}

template <int Rows, int Vecs>
__attribute__((noinline)) void tile(const TileWork& t) {
  Vec sum[Rows][Vecs];
  const int64_t last = t.columns - (Vecs - 1) * kLanes;  // columns of the last vector
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 2
    for (int v = 0; v < Vecs; ++v) {
      const float* const from = t.start ? t.start : t.y[i] + t.column;
      const bool part = !t.start && v == Vecs - 1 && last < kLanes;
      sum[i][v] = part ? load_part(from + v * kLanes, last) : load(from + v * kLanes);
    }
  const float *a = t.a, *b = t.b, *ahead = t.ahead;
  int64_t row = 0;
  for (int64_t c = 0; c < t.depth; c += kStep, a += t.a_step) {
#pragma GCC unroll 1
    for (int64_t stop = row + t.y_ahead < Rows ? row + t.y_ahead : Rows; row < stop; ++row) {
      __builtin_prefetch(t.y[row] + t.column, 1);
      __builtin_prefetch(t.y[row] + t.column + t.columns - 1, 1);
      if (!t.before || t.before == t.y_all) continue;
      const float* const from = t.before + (t.y[row] - t.y_all) + t.column;
      for (int64_t at = t.column ? 2 * kLanes : 0; at < t.before_ahead; at += kLine) __builtin_prefetch(from + at);
    }
    for (int64_t i = 0; i < t.ahead_count; ++i, ahead += kLine) __builtin_prefetch(ahead, 0, 2);
    for (int64_t i = 0; i < t.next_count; ++i) __builtin_prefetch(t.next[i] + t.next_first + c, 0, 2);
    const float* base[(Rows + 2) / 3];
#pragma GCC unroll 5
    for (int i = 0; i < (Rows + 2) / 3; ++i) {
      base[i] = a + 3 * i * t.a_row;
      asm("" : "+r"(base[i]));
    }
    const int64_t count = t.depth - c < kStep ? t.depth - c : kStep;
    int64_t j = 0;
    for (; j + 4 <= count; j += 4, b += 4 * Vecs * kLanes) multiply<4>(sum, base, t.a_row, j, b);
    for (; j < count; ++j, b += Vecs * kLanes) multiply<1>(sum, base, t.a_row, j, b);
  }
  if (t.before)
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) {
      const float* const from = t.before + (t.y[i] - t.y_all) + t.column;
#pragma GCC unroll 2
      for (int v = 0; v < Vecs; ++v)
        sum[i][v] += v < Vecs - 1 || last == kLanes ? load(from + v * kLanes) : load_part(from + v * kLanes, last);
    }
  if (t.relu)
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 2
      for (int v = 0; v < Vecs; ++v) sum[i][v] = sum[i][v] < Vec{} ? Vec{} : sum[i][v];
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i) {
    float* const to = t.y[i] + t.column;
#pragma GCC unroll 2
    for (int v = 0; v < Vecs - 1; ++v) store(to + v * kLanes, sum[i][v]);
    if (last == kLanes)
      store(to + (Vecs - 1) * kLanes, sum[i][Vecs - 1]);
    else
      store_part(to + (Vecs - 1) * kLanes, sum[i][Vecs - 1], last);
  }
}

template <int Vecs>
Tile tile_of(int64_t rows) {
  static constexpr Tile tiles[] = {
      tile<1, Vecs>,  tile<2, Vecs>,  tile<3, Vecs>, tile<4, Vecs>,  tile<5, Vecs>,  tile<6, Vecs>,
#if defined(__AVX512F__)
      tile<7, Vecs>,  tile<8, Vecs>,  tile<9, Vecs>, tile<10, Vecs>, tile<11, Vecs>, tile<12, Vecs>,
      tile<13, Vecs>, tile<14, Vecs>,
#endif
  };
  return tiles[rows - 1];
}

/// Packs the pixels that begin at `rows` as one tile.
void pack_pixels(const float* const* rows, int64_t count, int64_t c, float* to) {
  const int64_t whole = c / kStep * kStep;
  for (int64_t i = 0; i < count; ++i, to += kStep) {
    const float* from = rows[i];
    float* at = to;
    for (int64_t j = 0; j < whole; j += kStep, at += kTileStep)
#pragma GCC unroll 4
      for (int64_t v = 0; v < kStep; v += kLanes) store(at + v, load(from + j + v));
    for (int64_t j = whole; j < c; ++j) at[j - whole] = from[j];
  }
}

}  // namespace
}  // namespace medmpi::MEDMPI_ISA
