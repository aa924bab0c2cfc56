// Gradient of a 1x1 convolution for its weight: the product of the transposed (pixels, c) and the (pixels, k) matrix.
// One side is cut into tiles of kTileRows channels, the other into panels of kPanel; where the output is a few channels
// they change places. The pixels are cut into blocks: a register tile sums a whole block, and asks meanwhile for the
// next one from memory, a line for each pixel it passes. Tiles and panels are read where they lie while that is good
// for the caches, else packed first: the shorter side of a block whole, the other a unit at a time. Sums stay short,
// and their order depends on the shape alone: threads share out chunks of blocks, each with a gradient of its own,
// where that is small; else the longer side. Scratch slots: 10 (a packed unit), 11 (the packed shorter side), 13
// (lists) of each thread, 12 (gradients of the chunks) of the calling thread.
#include "cpu/conv2d_pointwise.h"
#include "cpu/pixels.h"
#include "cpu/sizes.h"
#include "cpu/threads.h"
#include "cpu/tile.h"
#include "ops/scratch.h"

namespace medmpi::MEDMPI_ISA {
namespace {

constexpr int64_t kBlockPixels = 192;      // that a register tile sums where the outer side is read where it lies,
constexpr int64_t kPackedPixels = 512;     // and where it is packed
constexpr int64_t kChunkFloats = 5 << 16;  // all chunks' gradients together
constexpr int64_t kMaxChunks = 16, kMinChunks = 8;
// A side is read where it lies if its pixels are so near, in floats, that they do not meet in few sets of a cache; the
// outer one also if it is not read too often for that.
constexpr int64_t kNear = 256, kFar = 1024, kRepeats = 8;
constexpr int64_t kLine = 16;  // floats of a cache line

/// What is asked for ahead while a register tile passes pixel i: channels [begin, end) of pixel rows[i].
struct Ahead {
  const float* const* rows;
  int64_t begin, end;
};

/// A factor of a tile: from one pixel to the next.
struct Factor {
  const float* data;
  int64_t step;
};

using Tile = void (*)(int64_t pixels, const Factor& a, const Factor& b, const Ahead& ahead, const TileOut& out);

template <int Rows, int Vecs>
__attribute__((noinline)) void tile(int64_t pixels, const Factor& x, const Factor& dy, const Ahead& ahead,
                                    const TileOut& out) {
  const float *a = x.data, *b = dy.data;
  const int64_t a_step = x.step, b_step = dy.step;
  for (int i = 0; i < Rows; ++i)  // needed only at the end: time enough to fetch it
    for (int64_t j = 0; j < out.cols; j += kLine) __builtin_prefetch(out.data + i * out.row + j, 1);
  Vec acc[Rows][Vecs] = {};
  for (int64_t p = 0; p < pixels; ++p, a += a_step, b += b_step) {
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
  bool in_place;                 // the outer side is read where it lies
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
  Factor* factors;  // of the inner side
};

Plan make_plan(Side tiles, Side panels, int64_t pixels) {
  tiles.units = ceil_div(tiles.channels, kTileRows);
  panels.units = ceil_div(panels.channels, kPanel);
  const bool tiles_outside = tiles.channels > panels.channels;
  const Side &outer = tiles_outside ? tiles : panels, &inner = tiles_outside ? panels : tiles;
  const bool in_place =
      outer.pixels.line == 0 && outer.channels <= kFar && inner.units * outer.channels <= kRepeats * kFar;
  const int64_t target = in_place ? kBlockPixels : kPackedPixels;
  const int64_t blocks = larger(1, (pixels + target / 2) / target);
  return {tiles, panels, tiles_outside, in_place, pixels, blocks, ceil_div(pixels, blocks)};
}

Packed buffers(const Plan& p) {
  const auto floats = [](int slot, int64_t count) {
    return static_cast<float*>(scratch(slot, sizeof(float) * static_cast<size_t>(count)));
  };
  const int64_t units = p.inner().units;
  void* const lists =
      scratch(13, sizeof(float*) * static_cast<size_t>(3 * p.most) + sizeof(Factor) * static_cast<size_t>(units));
  Factor* const factors = static_cast<Factor*>(lists);
  const float** const rows = reinterpret_cast<const float**>(factors + units);
  return {floats(10, p.most * kPanel),
          floats(11, units * p.most * kPanel),
          rows,
          rows + p.most,
          rows + 2 * p.most,
          factors};
}

/// Tile t of the pixels at `rows`, packed; what the tile does not fill is never read.
Factor pack_tile(const Plan& p, int64_t t, const float* const* rows, int64_t count, float* to) {
  const int64_t first = p.tile(t), left = p.tiles.channels - first;
  for (int64_t i = 0; i < count; ++i) {
    if (left >= kPitch)
#pragma GCC unroll 4
      for (int64_t v = 0; v < kPitch; v += kLanes) store(to + i * kPitch + v, load(rows[i] + first + v));
    else
      pack_rows(rows[i] + first, 0, left, 1, to + i * kPitch, 0, kPitch);
  }
  return {to, kPitch};
}

Factor pack_panel(const Plan& p, int64_t q, const float* const* rows, int64_t count, float* to) {
  const int64_t first = q * kPanel, columns = smaller(kPanel, p.panels.channels - first);
  const int64_t width = columns > kLanes ? kPanel : kLanes;
  for (int64_t i = 0; i < count; ++i) pack_rows(rows[i] + first, 0, columns, 1, to + i * width, 0, width);
  return {to, width};
}

/// Unit i of a side: where it lies, if it may be read there, or packed.
Factor take(const Plan& p, const Side& side, int64_t i, bool in_place, const float* const* rows, int64_t count,
            float* to) {
  const bool tile = &side == &p.tiles;
  const int64_t first = tile ? p.tile(i) : i * kPanel;
  // vectors must not reach beyond the last pixel
  if (in_place && side.pixels.line == 0 && (tile || first + kPanel <= side.channels))
    return {rows[0] + first, side.channels};
  return tile ? pack_tile(p, i, rows, count, to) : pack_panel(p, i, rows, count, to);
}

/// Adds one block's product, for the units [begin, end) of the outer side, to `sums`, rows of `row` floats. The inner
/// side is the shorter one; a unit of the outer one meets all of it.
void add_block(const Plan& p, int64_t block, int64_t begin, int64_t end, const Packed& packed, float* sums,
               int64_t row) {
  const int64_t first = p.pixel(block), count = p.pixel(block + 1) - first;
  const Side &outer = p.outer(), &inner = p.inner();
  inner.pixels.find(first, count, inner.data, packed.rows);
  const int64_t pitch = count * (p.tiles_outside ? kPanel : kPitch);
  for (int64_t i = 0; i < inner.units; ++i)
    packed.factors[i] = take(p, inner, i, inner.channels <= kNear, packed.rows, count, packed.inner + i * pitch);

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
    const Factor outside = take(p, outer, o, p.in_place, packed.rows, count, packed.outer);
    for (int64_t i = 0; i < inner.units; ++i, ++j) {
      Ahead ahead{packed.inner_next, 0, 0};
      if (!last && j < early)
        ahead = {packed.inner_next, inner_lines * j / early * kLine, inner_lines * (j + 1) / early * kLine};
      else if (!last)
        ahead = {packed.outer_next, share + outer_lines * (j - early) / late * kLine,
                 share + outer_lines * (j - early + 1) / late * kLine};
      const int64_t t = p.tiles_outside ? o : i, q = p.tiles_outside ? i : o;
      const int64_t columns = smaller(kPanel, p.panels.channels - q * kPanel);
      const Factor& inside = packed.factors[i];
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
  if (turned || chunks >= kMinChunks || (chunks == p.blocks && p.outer().units < kMinChunks))
    by_chunks(p, chunks, dweight, turned ? 1 : g.k, turned ? g.k : 1);
  else
    by_units(p, dweight);
}

}  // namespace medmpi::MEDMPI_ISA
