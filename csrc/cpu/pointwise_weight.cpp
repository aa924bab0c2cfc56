// Gradient of a 1x1 convolution for its weight: the product of the transposed (pixels, c) and the (pixels, k) matrix.
// The pixels are cut into blocks; a block of one side is packed as tiles of kTileRows channels and of the other as
// panels of kPanel channels, the narrower side of the two where the output is a few channels. A register tile sums a
// whole block, while the next block is asked for from memory, a line for each pixel it passes. Sums stay short, and
// their order depends on the shape alone: threads share out chunks of blocks, each with a gradient of its own, where
// that is small; else panels. Scratch slots: 10 (packed tiles), 11 (packed panels), 13 (rows) of each thread, 12
// (gradients of the chunks) of the calling thread.
#include "cpu/conv2d_pointwise.h"
#include "cpu/pixels.h"
#include "cpu/threads.h"
#include "cpu/tile.h"
#include "ops/scratch.h"

namespace medmpi::MEDMPI_ISA {
namespace {

constexpr int64_t kBlockPixels = 192;        // a packed panel and a packed tile of so many pixels share 36 KB
constexpr int64_t kLargeGradient = 1 << 19;  // floats; it takes much of the second-level cache: visit it half as often
constexpr int64_t kChunkFloats = 5 << 16;    // all chunks' gradients together
constexpr int64_t kMaxChunks = 16, kMinChunks = 8;
constexpr int64_t kLine = 16;  // floats of a cache line

constexpr int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/// What is asked for ahead while a register tile passes pixel i: channels [begin, end) of pixel rows[i].
struct Ahead {
  const float* const* rows;
  int64_t begin, end;
};

using Tile = void (*)(int64_t pixels, const float* a, const float* b, const Ahead& ahead, const TileOut& out);

template <int Rows, int Vecs>
__attribute__((noinline)) void tile(int64_t pixels, const float* a, const float* b, const Ahead& ahead,
                                    const TileOut& out) {
  for (int i = 0; i < Rows; ++i)  // needed only at the end: time enough to fetch it
    for (int64_t j = 0; j < out.cols; j += kLine) __builtin_prefetch(out.data + i * out.row + j, 1);
  Vec acc[Rows][Vecs] = {};
  for (int64_t p = 0; p < pixels; ++p, a += kPitch, b += Vecs * kLanes) {
    for (int64_t c = ahead.begin; c < ahead.end; c += kLine) __builtin_prefetch(ahead.rows[p] + c, 0, 2);
    tile_multiply(acc, 1, a, 0, b, 0);
  }
  tile_store(acc, out);
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

/// One factor: `channels` of each pixel, in `units` of a register tile's rows or columns.
struct Side {
  int64_t channels, units;
  Pixels pixels;
  const float* data;
};

struct Plan {
  Side tiles, panels;
  bool tiles_outside;            // the loop over tiles is the outer one
  int64_t pixels, blocks, most;  // most: pixels of the largest block

  const Side& outer() const { return tiles_outside ? tiles : panels; }
  const Side& inner() const { return tiles_outside ? panels : tiles; }
  int64_t pixel(int64_t block) const { return pixels * block / blocks; }
  int64_t tile(int64_t t) const { return tiles.channels * t / tiles.units; }
};

/// The buffers of a thread.
struct Packed {
  float *outer, *inner;
  const float **rows, **outer_next, **inner_next;
};

Plan make_plan(Side tiles, Side panels, int64_t pixels) {
  const int64_t target = tiles.channels * panels.channels > kLargeGradient ? 2 * kBlockPixels : kBlockPixels;
  const int64_t blocks = larger(1, (pixels + target / 2) / target);
  tiles.units = ceil_div(tiles.channels, kTileRows);
  panels.units = ceil_div(panels.channels, kPanel);
  return {tiles, panels, tiles.channels > panels.channels, pixels, blocks, ceil_div(pixels, blocks)};
}

Packed buffers(const Plan& p) {
  const auto floats = [](int slot, int64_t count) {
    return static_cast<float*>(scratch(slot, sizeof(float) * static_cast<size_t>(count)));
  };
  const auto rows = static_cast<const float**>(scratch(13, sizeof(float*) * static_cast<size_t>(3 * p.most)));
  return {floats(10, p.most * kPanel), floats(11, p.inner().units * p.most * kPanel), rows, rows + p.most,
          rows + 2 * p.most};
}

/// Tile t of the pixels at `rows`; what the tile does not fill is never read.
void pack_tile(const Plan& p, int64_t t, const float* const* rows, int64_t count, float* to) {
  const int64_t first = p.tile(t), left = smaller(kPitch, p.tiles.channels - first);
  if (left < kPitch) {
    for (int64_t i = 0; i < count; ++i) pack_rows(rows[i] + first, 0, left, 1, to + i * kPitch, 0, kPitch);
    return;
  }
  for (int64_t i = 0; i < count; ++i, to += kPitch)
#pragma GCC unroll 4
    for (int64_t v = 0; v < kPitch; v += kLanes) store(to + v, load(rows[i] + first + v));
}

void pack_panel(const Plan& p, int64_t q, const float* const* rows, int64_t count, float* to) {
  const int64_t first = q * kPanel, left = smaller(kPanel, p.panels.channels - first);
  if (left < kPanel) {
    const int64_t width = left > kLanes ? kPanel : kLanes;
    for (int64_t i = 0; i < count; ++i) pack_rows(rows[i] + first, 0, left, 1, to + i * width, 0, width);
    return;
  }
  for (int64_t i = 0; i < count; ++i, to += kPanel) {
    store(to, load(rows[i] + first));
    store(to + kLanes, load(rows[i] + first + kLanes));
  }
}

/// Adds one block's product, for the units [begin, end) of the outer side, to `sums`, rows of `row` floats. The inner
/// side is packed whole, the outer one a unit at a time: it stays in the first-level cache.
void add_block(const Plan& p, int64_t block, int64_t begin, int64_t end, const Packed& packed, float* sums,
               int64_t row) {
  const int64_t first = p.pixel(block), count = p.pixel(block + 1) - first;
  const Side &outer = p.outer(), &inner = p.inner();
  const auto pack_outer = p.tiles_outside ? pack_tile : pack_panel;
  const auto pack_inner = p.tiles_outside ? pack_panel : pack_tile;
  const int64_t pitch = count * (p.tiles_outside ? kPanel : kPitch);
  inner.pixels.find(first, count, inner.data, packed.rows);
  for (int64_t i = 0; i < inner.units; ++i) pack_inner(p, i, packed.rows, count, packed.inner + i * pitch);

  // the first products ask for the next block's inner side, the others for the outer one
  const bool last = block + 1 == p.blocks;
  const int64_t next = last ? first : smaller(p.pixel(block + 1), p.pixels - count);
  const int64_t share = outer.channels * begin / outer.units, inner_lines = ceil_div(inner.channels, kLine);
  const int64_t outer_lines = ceil_div(outer.channels * end / outer.units - share, kLine);
  const int64_t products = (end - begin) * inner.units;
  const int64_t early = products * inner_lines / (inner_lines + outer_lines), late = products - early;
  inner.pixels.find(next, count, inner.data, packed.inner_next);
  outer.pixels.find(next, count, outer.data, packed.outer_next);
  outer.pixels.find(first, count, outer.data, packed.rows);
  for (int64_t o = begin, j = 0; o < end; ++o) {
    pack_outer(p, o, packed.rows, count, packed.outer);
    for (int64_t i = 0; i < inner.units; ++i, ++j) {
      Ahead ahead{packed.inner_next, 0, 0};
      if (!last && j < early)
        ahead = {packed.inner_next, inner_lines * j / early * kLine, inner_lines * (j + 1) / early * kLine};
      else if (!last)
        ahead = {packed.outer_next, share + outer_lines * (j - early) / late * kLine,
                 share + outer_lines * (j - early + 1) / late * kLine};
      const int64_t t = p.tiles_outside ? o : i, q = p.tiles_outside ? i : o;
      const int64_t columns = smaller(kPanel, p.panels.channels - q * kPanel);
      const float *const inside = packed.inner + i * pitch, *const outside = packed.outer;
      const TileOut out{sums + p.tile(t) * row + q * kPanel, row, columns, true, nullptr};
      (columns > kLanes ? tile_of<2> : tile_of<1>)(p.tile(t + 1) - p.tile(t))(
          count, p.tiles_outside ? outside : inside, p.tiles_outside ? inside : outside, ahead, out);
    }
  }
}

/// Threads take whole chunks of blocks; the chunks' gradients are added in order, to dweight[i * row + j * column].
void by_chunks(const Plan& p, int64_t chunks, float* dweight, int64_t row, int64_t column) {
  const int64_t rows = p.tiles.channels, columns = p.panels.channels, size = rows * columns;
  float* const parts = static_cast<float*>(scratch(12, sizeof(float) * static_cast<size_t>(chunks * size)));
#pragma omp parallel
  {
    const Packed packed = buffers(p);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < chunks; ++i) {
      std::memset(parts + i * size, 0, sizeof(float) * static_cast<size_t>(size));
      for (int64_t b = p.blocks * i / chunks; b < p.blocks * (i + 1) / chunks; ++b)
        add_block(p, b, 0, p.outer().units, packed, parts + i * size, columns);
    }
#pragma omp for schedule(static)
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        const float* const part = parts + chunk * size + i * columns;
        for (int64_t j = 0; j < columns; ++j) dweight[i * row + j * column] += part[j];
      }
  }
}

/// Threads share out the outer side, and sum all blocks.
void by_units(const Plan& p, float* dweight) {
#pragma omp parallel num_threads(static_cast<int>(smaller(omp_get_max_threads(), p.outer().units)))
  {
    const int64_t threads = omp_get_num_threads(), me = omp_get_thread_num(), units = p.outer().units;
    const Packed packed = buffers(p);
    for (int64_t b = 0; b < p.blocks; ++b)
      add_block(p, b, units * me / threads, units * (me + 1) / threads, packed, dweight, p.panels.channels);
  }
}

}  // namespace

void pointwise_backward_weight(const Conv2dShape& g, const float* dy, const float* x, float* dweight) {
  const Side from_x{g.c, 0, input_pixels(g), x}, from_dy{g.k, 0, output_pixels(g), dy};
  const int64_t pixels = g.n * g.out_h() * g.out_w(), limit = kChunkFloats / (g.c * g.k);
  const bool turned = g.k < kLanes && g.c > g.k && limit >= kMinChunks;  // vectors of c waste less
  const Plan p = turned ? make_plan(from_dy, from_x, pixels) : make_plan(from_x, from_dy, pixels);
  const int64_t chunks = smaller(smaller(p.blocks, kMaxChunks), limit);
  if (chunks >= smaller(p.blocks, kMinChunks))
    by_chunks(p, chunks, dweight, turned ? 1 : g.k, turned ? g.k : 1);
  else
    by_units(p, dweight);
}

}  // namespace medmpi::MEDMPI_ISA
