// Convolution by a 1x1 filter: the product of a (pixels, channels) and a (channels, channels) matrix. Weights are
// packed once as panels of kPanel output channels. A block of pixels is packed as tiles of kTileRows, [16 channels]
// [pixel][channel]; then each panel meets each tile, and a register tile sums the whole depth. Where the panels fit the
// second-level cache beside it, a block is one tile and the output is written in memory order; where they do not, a
// block is as many tiles as fit, so that each panel is fetched once for all of them. What comes from memory is asked
// for ahead, a line at a time between the products: the next block's pixels, and the lines of y that a tile will
// write. Every sum runs over the channels in order, so that neither blocks nor threads change a bit.
// Scratch slots: 0 (packed weights, of the calling thread), 2 (packed pixels, of each thread), 3 (rows, of each).
#include "cpu/conv2d_pointwise.h"

#include "cpu/pixels.h"
#include "cpu/pointwise_narrow.h"
#include "cpu/threads.h"
#include "cpu/tile.h"
#include "ops/scratch.h"

namespace medmpi::MEDMPI_ISA {
namespace {

constexpr int64_t kStep = 16;  // channels of a packed pixel that lie side by side
constexpr int64_t kTileStep = kTileRows * kStep;
constexpr int64_t kDepth = 1024;            // channels that a register tile sums at a time
constexpr int64_t kFewProducts = 1 << 14;   // of a block: less is not worth its beginning
constexpr int64_t kFewWeights = 256 << 10;  // bytes of weights that stay in the second-level cache
constexpr int64_t kCollision = 512;         // floats: rows so far apart meet in few sets of the first-level cache
constexpr int64_t kPanelsTogether = 4;      // are packed, to read weights in runs
constexpr int64_t kBlockTiles = 4;          // at least, where they do not
constexpr int64_t kBlockBytes = 192 << 10;  // of packed pixels that stay there

constexpr int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/// y = x weight + bias for `pixels` rows of `c` and `k` channels. Pixels of y that no row meets become the bias.
struct Product {
  int64_t pixels, c, k;
  Pixels in, out;
  const float* x;
  float* y;
  const float* bias;
  bool relu;
  int64_t h, w;  // of an image of y
};

/// What one register tile needs.
struct TileWork {
  const float* a;  // pixels, a_row floats apart; each next step of their channels lies a_step further on
  int64_t a_row, a_step;
  const float* b;  // packed weights
  int64_t depth;
  float* const* y;  // the tile's rows
  int64_t column, columns;
  const float* start;  // what a sum starts from; null: y
  bool relu;
  int64_t y_ahead;           // rows of y asked for at each step
  const float* const* next;  // pixels that are asked for ahead, one step of each at each step
  int64_t next_count;
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
  const float *a = t.a, *b = t.b;
  int64_t row = 0;
  for (int64_t c = 0; c < t.depth; c += kStep, a += t.a_step) {
#pragma GCC unroll 1
    for (int64_t stop = smaller(row + t.y_ahead, Rows); row < stop; ++row) {
      __builtin_prefetch(t.y[row] + t.column, 1);
      __builtin_prefetch(t.y[row] + t.column + t.columns - 1, 1);
    }
    for (int64_t i = 0; i < t.next_count; ++i) __builtin_prefetch(t.next[i] + c, 0, 2);
    const float* base[(Rows + 2) / 3];
#pragma GCC unroll 5
    for (int i = 0; i < (Rows + 2) / 3; ++i) {
      base[i] = a + 3 * i * t.a_row;
      asm("" : "+r"(base[i]));
    }
    const int64_t count = smaller(kStep, t.depth - c);
    int64_t j = 0;
    for (; j + 4 <= count; j += 4, b += 4 * Vecs * kLanes) multiply<4>(sum, base, t.a_row, j, b);
    for (; j < count; ++j, b += Vecs * kLanes) multiply<1>(sum, base, t.a_row, j, b);
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

/// How the work is cut.
struct Plan {
  int64_t panels, depths;        // of output channels, of input channels
  int64_t tiles, blocks, parts;  // of pixels; of tiles; of panels
  int64_t tile_size;             // floats of a packed tile
  bool packed;                   // else pixels are read where they lie
  int64_t tiles_of(int64_t block) const { return tiles * block / blocks; }
};

Plan make_plan(const Product& p) {
  const int64_t panels = ceil_div(p.k, kPanel), tiles = ceil_div(p.pixels, kTileRows);
  const int64_t threads = p.pixels * p.c * p.k > (1 << 18) ? omp_get_max_threads() : 1;
  const int64_t tile_size = ceil_div(p.c, kStep) * kTileStep;
  int64_t block = ceil_div(kFewProducts, kTileRows * p.c * panels * kPanel);
  const bool few = panels * kPanel * p.c * 4 <= kFewWeights;
  if (!few) block = larger(kBlockTiles, kBlockBytes / 4 / tile_size);
  block = larger(1, smaller(block, tiles / threads));
  int64_t blocks = ceil_div(tiles, block);
  if (block > 1) blocks = ceil_div(blocks, threads) * threads;
  const int64_t parts = smaller(panels, ceil_div(threads, blocks));
  return {panels, ceil_div(p.c, kDepth), tiles, blocks, parts, tile_size, p.in.line || !few || p.c % kCollision == 0};
}

/// Sets the pixels [first, last) of a row of y to the bias.
void fill(const Product& p, int64_t image, int64_t row, int64_t first, int64_t last) {
  float* to = p.y + ((image * p.h + row) * p.w + first) * p.k;
  if (!p.bias) {
    if (first < last) std::memset(to, 0, static_cast<size_t>((last - first) * p.k) * sizeof(float));
    return;
  }
  for (int64_t j = first; j < last; ++j, to += p.k) std::memcpy(to, p.bias, static_cast<size_t>(p.k) * sizeof(float));
}

/// Sets the pixels of y between those that a stride meets: what follows each in its row, and the rows that follow it.
void fill_gaps(const Product& p, int64_t first, int64_t count) {
  const int64_t columns = p.out.columns, rows = p.out.rows;
  const int64_t step_w = p.out.pixel / p.k, step_h = p.out.line / p.k / p.w;
  for (int64_t m = first; m < first + count; ++m) {
    const int64_t j = m % columns, i = m / columns % rows, n = m / columns / rows;
    fill(p, n, i * step_h, j * step_w + 1, j + 1 < columns ? (j + 1) * step_w : p.w);
    if (j == 0)
      for (int64_t row = i * step_h + 1; row < (i + 1 < rows ? (i + 1) * step_h : p.h); ++row) fill(p, n, row, 0, p.w);
  }
}

bool is_narrow(const Product& p) { return p.k <= kNarrow && p.c >= 2 * kLanes; }

/// As run, for a few columns. `weight(j, q)` is the weight of channel j and column q.
template <typename Weight>
void run_narrow(const Product& p, const Weight& weight) {
  const int64_t pitch = ceil_div(p.c, kLanes) * kLanes, chunks = ceil_div(p.pixels, kNarrowChunk);
  float* const packed = static_cast<float*>(scratch(0, static_cast<size_t>(kNarrow * pitch) * sizeof(float)));
  float start[kNarrow] = {};
  for (int64_t q = 0; q < p.k; ++q) {
    if (p.bias) start[q] = p.bias[q];
    for (int64_t j = 0; j < pitch; ++j) packed[q * pitch + j] = j < p.c ? weight(j, q) : 0.0f;
  }
  constexpr decltype(&narrow_rows<1>) kernels[] = {narrow_rows<1>, narrow_rows<2>, narrow_rows<3>, narrow_rows<4>};
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < chunks; ++i) {
    const int64_t first = i * kNarrowChunk, count = smaller(kNarrowChunk, p.pixels - first);
    float* y[kNarrowChunk];
    const float* rows[kNarrowChunk];
    p.out.find(first, count, p.y, y);
    p.in.find(first, count, p.x, rows);
    if (p.out.line) fill_gaps(p, first, count);
    kernels[p.k - 1](rows, count, p.c, packed, pitch, start, p.relu, y);
  }
}

/// One block for the panels [q0, q1); pixels [next, next_end) are asked for meanwhile.
void run_block(const Product& p, const Plan& plan, int64_t block, int64_t next_block, int64_t q0, int64_t q1,
               const float* weight, float* packed, void* lists) {
  const int64_t t0 = plan.tiles_of(block), t1 = plan.tiles_of(block + 1);
  const auto pixel = [&](int64_t t) { return p.pixels * t / plan.tiles; };
  const int64_t first = pixel(t0), count = pixel(t1) - first;
  float** const y = static_cast<float**>(lists);
  const float** const rows = const_cast<const float**>(y + count);
  p.out.find(first, count, p.y, y);
  p.in.find(first, count, p.x, rows);
  const float* const x = rows[0];
  if (q0 == 0 && p.out.line) fill_gaps(p, first, count);
  for (int64_t t = t0; t < t1 && plan.packed; ++t)
    pack_pixels(rows + pixel(t) - first, pixel(t + 1) - pixel(t), p.c, packed + (t - t0) * plan.tile_size);
  const int64_t ahead = pixel(plan.tiles_of(next_block)), ahead_count = pixel(plan.tiles_of(next_block + 1)) - ahead;
  if (next_block < plan.blocks) p.in.find(ahead, ahead_count, p.x, rows);
  const int64_t steps = ceil_div(p.c, kStep), ops = (q1 - q0) * (t1 - t0);
  for (int64_t d = 0; d < plan.depths; ++d) {
    const int64_t s0 = steps * d / plan.depths, s1 = steps * (d + 1) / plan.depths;
    TileWork work{};
    work.a_row = plan.packed ? kStep : p.in.pixel, work.a_step = plan.packed ? kTileStep : kStep;
    work.depth = smaller(p.c, s1 * kStep) - s0 * kStep;
    work.relu = p.relu && d + 1 == plan.depths;
    work.y_ahead = d || s1 == 1 ? 0 : ceil_div(kTileRows, s1);
    for (int64_t q = q0, op = 0; q < q1; ++q) {
      float start[kPanel] = {};
      work.column = q * kPanel;
      work.columns = smaller(kPanel, p.k - work.column);
      const int64_t width = work.columns > kLanes ? kPanel : kLanes;
      if (p.bias) std::memcpy(start, p.bias + work.column, static_cast<size_t>(work.columns) * sizeof(float));
      work.start = d ? nullptr : start;
      work.b = weight + work.column * p.c + s0 * kStep * width;
      for (int64_t t = t0; t < t1; ++t, ++op) {
        work.a = plan.packed ? packed + (t - t0) * plan.tile_size : x + (pixel(t) - first) * p.in.pixel;
        work.a += s0 * work.a_step;
        work.y = y + pixel(t) - first;
        if (next_block < plan.blocks) {
          const int64_t begin = ahead_count * op / ops;
          work.next = rows + begin;
          work.next_count = ahead_count * (op + 1) / ops - begin;
        }
        const int64_t height = pixel(t + 1) - pixel(t);
        (width == kPanel ? tile_of<2> : tile_of<1>)(height)(work);
      }
    }
  }
}

/// Packs panels [q0, q1) of a (c, k) matrix, row by row.
void pack_weights(const float* weight, int64_t c, int64_t k, int64_t q0, int64_t q1, float* to) {
  const int64_t whole = smaller(q1, k / kPanel), left = k - whole * kPanel, width = left > kLanes ? kPanel : kLanes;
  for (int64_t j = 0; j < c; ++j, weight += k) {
    for (int64_t q = q0; q < whole; ++q) {
      float* const at = to + (q * c + j) * kPanel;
      store(at, load(weight + q * kPanel));
      store(at + kLanes, load(weight + q * kPanel + kLanes));
    }
    if (whole < q1) pack_rows(weight + whole * kPanel, 0, left, 1, to + whole * kPanel * c + j * width, 0, width);
  }
}

/// `pack(q0, q1, to)` packs panels [q0, q1).
template <typename Pack>
void run(const Product& p, const Pack& pack) {
  const Plan plan = make_plan(p);
  float* const weight =
      static_cast<float*>(scratch(0, static_cast<size_t>(plan.panels * kPanel * p.c) * sizeof(float)));
  const int64_t most = ceil_div(plan.tiles, plan.blocks), items = plan.blocks * plan.parts;
#pragma omp parallel num_threads(p.pixels* p.c* p.k > (1 << 18) ? omp_get_max_threads() : 1)
  {
    float* const packed = static_cast<float*>(scratch(2, static_cast<size_t>(most * plan.tile_size) * sizeof(float)));
    void* const lists = scratch(3, static_cast<size_t>(2 * most * kTileRows + 1) * sizeof(float*));
#pragma omp for schedule(static)
    for (int64_t q = 0; q < plan.panels; q += kPanelsTogether)
      pack(q, smaller(q + kPanelsTogether, plan.panels), weight);
    const int64_t threads = omp_get_num_threads(), me = omp_get_thread_num();
    const int64_t begin = items * me / threads, end = items * (me + 1) / threads;
    for (int64_t item = begin; item < end; ++item) {
      const int64_t part = item % plan.parts, next = item + 1 < end ? (item + 1) / plan.parts : plan.blocks;
      run_block(p, plan, item / plan.parts, next, plan.panels * part / plan.parts,
                plan.panels * (part + 1) / plan.parts, weight, packed, lists);
    }
  }
}

}  // namespace

bool is_pointwise(const Conv2dShape& g) {
  return g.r == 1 && g.s == 1 && g.groups == 1 && g.pad_top == 0 && g.pad_left == 0 && g.n > 0 &&
         (g.out_h() - 1) * g.stride_h < g.h && (g.out_w() - 1) * g.stride_w < g.w;
}

void pointwise_forward(const Conv2dShape& g, const float* x, const float* weight, const float* bias, bool relu,
                       float* y) {
  const Product p{g.n * g.out_h() * g.out_w(), g.c, g.k, input_pixels(g), output_pixels(g), x, y, bias, relu, 0, 0};
  if (is_narrow(p)) return run_narrow(p, [=](int64_t j, int64_t q) { return weight[j * g.k + q]; });
  run(p, [=](int64_t q0, int64_t q1, float* to) { pack_weights(weight, g.c, g.k, q0, q1, to); });
}

void pointwise_backward_data(const Conv2dShape& g, const float* dy, const float* weight, const float* bias, float* dx) {
  const Product p{
      g.n * g.out_h() * g.out_w(), g.k, g.c, output_pixels(g), input_pixels(g), dy, dx, bias, false, g.h, g.w};
  if (is_narrow(p)) return run_narrow(p, [=](int64_t j, int64_t q) { return weight[q * g.k + j]; });
  run(p, [=](int64_t q0, int64_t q1, float* to) {
    for (int64_t q = q0; q < q1; ++q) {
      const int64_t columns = smaller(kPanel, g.c - q * kPanel), width = columns > kLanes ? kPanel : kLanes;
      pack_transposed(weight + q * kPanel * g.k, g.k, columns, g.k, to + q * kPanel * g.k, width, width);
    }
  });
}

}  // namespace medmpi::MEDMPI_ISA
