// Convolution by a 1x1 filter: the product of a (pixels, channels) and a (channels, channels) matrix. Weights are
// packed as panels of kPanel output channels, pixels are cut into tiles of kTileRows and tiles into blocks; each panel
// meets each tile of a block, and a register tile sums the whole depth. Where the panels fit the second-level cache, a
// block is one tile, read where it lies, and the output is written in memory order; where they do not, a block is as
// many packed tiles as fit, so that each panel is fetched once for all of them; where pixels are few, all are one block
// and each panel is packed when its turn comes. What comes from memory is asked for ahead, a line at a time between
// the products: the next block's pixels, and the lines of y that a tile will write. Every sum runs over the channels
// in order, so that neither blocks nor threads change a bit.
// Scratch slots: 0 (packed weights, of the calling thread), 1 (packed weights in use), 2 (packed pixels) and 3 (rows)
// of each thread.
#include "cpu/conv2d_pointwise.h"

#include "cpu/pixels.h"
#include "cpu/pointwise_narrow.h"
#include "cpu/pointwise_tile.h"
#include "cpu/sizes.h"
#include "cpu/threads.h"
#include "ops/scratch.h"
#include "ops/weight_cache.h"

namespace medmpi::MEDMPI_ISA {
namespace {

constexpr int64_t kDepth = 1024;            // channels that a register tile sums at a time
constexpr int64_t kFewProducts = 1 << 18;   // of a block at least: its beginning costs too
constexpr int64_t kFewWeights = 256 << 10;  // bytes of weights that stay in the second-level cache
constexpr int64_t kCollision = 512;         // floats: rows so far apart meet in few sets of the first-level cache
constexpr int64_t kPanelsTogether = 4;      // are packed, to read weights in runs
constexpr int64_t kBlockBytes = 192 << 10;  // of packed pixels that stay there beside more weights
constexpr int64_t kBlockTiles = 4;          // at least, however large
constexpr int64_t kShort = 128;             // floats that are set without a call

/// y = x weight + bias for `pixels` rows of `c` and `k` channels. Pixels of y that no row meets become the bias.
struct Product {
  int64_t pixels, c, k;
  Pixels in, out;
  const float* x;
  float* y;
  const float* bias;
  bool relu;
  int64_t h, w;  // of an image of y
  const Finish* finish;
  const float* before = nullptr;  // as y, added
};

/// How the work is cut.
struct Plan {
  int64_t threads;
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
  const bool few = panels * kPanel * p.c * 4 <= kFewWeights;
  const int64_t most = few ? ceil_div(kFewProducts, kTileRows * p.c * panels * kPanel)
                           : larger(kBlockTiles, kBlockBytes / 4 / tile_size);
  int64_t blocks = 1;
  if (tiles > most && p.k < 2 * p.pixels) {
    const int64_t block = larger(1, smaller(most, tiles / threads));
    blocks = block == 1 ? tiles : ceil_div(ceil_div(tiles, block), threads) * threads;
  }
  const int64_t parts = smaller(panels, ceil_div(threads, blocks));
  return {threads,
          panels,
          ceil_div(p.c, kDepth),
          tiles,
          blocks,
          parts,
          tile_size,
          p.in.line || !few || p.c % kCollision == 0};
}

/// Sets `count` pixels of y to the bias.
void fill(const Product& p, float* to, int64_t count) {
  if (!p.bias && count * p.k < kShort) {
    int64_t i = 0;
    for (; i + kLanes <= count * p.k; i += kLanes) store(to + i, Vec{});
    if (i < count * p.k) store_part(to + i, Vec{}, count * p.k - i);
    return;
  }
  if (!p.bias) {
    std::memset(to, 0, static_cast<size_t>(count * p.k) * sizeof(float));
    return;
  }
  for (int64_t i = 0; i < count; ++i, to += p.k) std::memcpy(to, p.bias, static_cast<size_t>(p.k) * sizeof(float));
}

/// Sets the pixels of y between those that a stride meets: what follows each in its row, and the rows that follow it.
void fill_gaps(const Product& p, int64_t first, int64_t count, float* const* y) {
  const int64_t columns = p.out.columns, rows = p.out.rows;
  const int64_t step_w = p.out.pixel / p.k, step_h = p.out.line / p.k / p.w;
  int64_t j = first % columns, i = first / columns % rows;
  for (int64_t m = 0; m < count; ++m) {
    const int64_t beside = j + 1 < columns ? step_w - 1 : p.w - 1 - j * step_w;
    if (beside > 0) fill(p, y[m] + p.k, beside);
    const int64_t below = i + 1 < rows ? step_h - 1 : p.h - 1 - i * step_h;
    if (j == 0 && below > 0) fill(p, y[m] + p.w * p.k, below * p.w);
    if (++j < columns) continue;
    j = 0;
    if (++i == rows) i = 0;
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
    if (p.out.line) fill_gaps(p, first, count, y);
    kernels[p.k - 1](rows, count, p.c, packed, pitch, start, p.relu, y);
    if (p.finish) p.finish->wrote_pixels(first, count, p.k);
  }
}

/// One block for the panels [q0, q1), `group` at a time: weights(a, b) gives the packed panels [a, b). The pixels of
/// another block, if there is one, are asked for meanwhile.
template <typename Weights>
void run_block(const Product& p, const Plan& plan, int64_t block, int64_t next_block, int64_t q0, int64_t q1,
               int64_t group, const Weights& weights, float* packed, void* lists) {
  const int64_t t0 = plan.tiles_of(block), t1 = plan.tiles_of(block + 1);
  const auto pixel = [&](int64_t t) { return p.pixels * t / plan.tiles; };
  const int64_t first = pixel(t0), count = pixel(t1) - first;
  float** const y = static_cast<float**>(lists);
  const float** const rows = const_cast<const float**>(y + count);
  p.out.find(first, count, p.y, y);
  p.in.find(first, count, p.x, rows);
  const float* const x = rows[0];
  if (q0 == 0 && p.out.line) fill_gaps(p, first, count, y);
  for (int64_t t = t0; t < t1 && plan.packed; ++t)
    pack_pixels(rows + (pixel(t) - first), pixel(t + 1) - pixel(t), p.c, packed + (t - t0) * plan.tile_size);
  const int64_t ahead = pixel(plan.tiles_of(next_block)), ahead_count = pixel(plan.tiles_of(next_block + 1)) - ahead;
  if (next_block < plan.blocks) p.in.find(ahead, ahead_count, p.x, rows);
  const int64_t steps = ceil_div(p.c, kStep), tiles = t1 - t0;
  for (int64_t g = q0; g < q1; g += group) {
    const int64_t stop = smaller(g + group, q1);
    const float* const weight = weights(g, stop);
    for (int64_t d = 0; d < plan.depths; ++d) {
      const int64_t s0 = steps * d / plan.depths, s1 = steps * (d + 1) / plan.depths;
      TileWork work{};
      work.a_row = plan.packed ? kStep : p.in.pixel, work.a_step = plan.packed ? kTileStep : kStep;
      work.next_first = s0 * kStep;
      work.depth = smaller(p.c, s1 * kStep) - s0 * kStep;
      work.relu = p.relu && d + 1 == plan.depths;
      work.before = p.before, work.y_all = p.y;
      work.y_ahead = d || s1 == 1 ? 0 : ceil_div(kTileRows, s1);
      for (int64_t q = g, op = (g - q0) * tiles; q < stop; ++q) {
        float start[kPanel] = {};
        work.column = q * kPanel;
        work.columns = smaller(kPanel, p.k - work.column);
        work.before_ahead = smaller(2 * kPanel, p.k - work.column);
        const int64_t width = work.columns > kLanes ? kPanel : kLanes;
        if (p.bias) std::memcpy(start, p.bias + work.column, static_cast<size_t>(work.columns) * sizeof(float));
        work.start = d ? nullptr : start;
        work.b = weight + (q - g) * kPanel * p.c + s0 * kStep * width;
        // weights that do not stay in the second-level cache are asked for before their panel's turn
        const bool more = plan.panels * kPanel * p.c * 4 > kFewWeights && q + 1 < stop;
        const int64_t lines = more ? work.depth * kPanel / kLine : 0, depth_steps = s1 - s0;
        for (int64_t t = t0; t < t1; ++t, ++op) {
          work.a = plan.packed ? packed + (t - t0) * plan.tile_size : x + (pixel(t) - first) * p.in.pixel;
          work.a += s0 * work.a_step;
          work.y = y + (pixel(t) - first);
          if (next_block < plan.blocks) {
            const int64_t begin = ahead_count * op / ((q1 - q0) * tiles);
            work.next = rows + begin;
            work.next_count = ahead_count * (op + 1) / ((q1 - q0) * tiles) - begin;
          }
          const int64_t line = lines * (t - t0) / tiles;
          work.ahead = work.b + kPanel * p.c + line * kLine;
          work.ahead_count = ceil_div(lines * (t + 1 - t0) / tiles - line, depth_steps);
          const int64_t height = pixel(t + 1) - pixel(t);
          (width == kPanel ? tile_of<2> : tile_of<1>)(height)(work);
        }
      }
    }
  }
  if (p.finish) p.finish->wrote_pixels(first, count, smaller(q1 * kPanel, p.k) - q0 * kPanel);
}

/// Packs panels [q0, q1) of a (c, k) matrix, row by row.
void pack_weights(const float* weight, int64_t c, int64_t k, int64_t q0, int64_t q1, float* to) {
  const int64_t whole = smaller(q1, k / kPanel), left = k - whole * kPanel, width = left > kLanes ? kPanel : kLanes;
  for (int64_t j = 0; j < c; ++j, weight += k) {
    for (int64_t q = q0; q < whole; ++q) {
      float* const at = to + ((q - q0) * c + j) * kPanel;
      store(at, load(weight + q * kPanel));
      store(at + kLanes, load(weight + q * kPanel + kLanes));
    }
    if (whole < q1)
      pack_rows(weight + whole * kPanel, 0, left, 1, to + (whole - q0) * kPanel * c + j * width, 0, width);
  }
}

/// `pack(q0, q1, to)` packs panels [q0, q1).
template <typename Pack>
void run(const Product& p, const Pack& pack) {
  const Plan plan = make_plan(p);
  const auto floats = [](int slot, int64_t count) {
    return static_cast<float*>(scratch(slot, static_cast<size_t>(count) * sizeof(float)));
  };
  const int64_t panel = kPanel * p.c, most = ceil_div(plan.tiles, plan.blocks), items = plan.blocks * plan.parts;
  const int64_t group = larger(1, smaller(kPanelsTogether, kFewWeights / 4 / panel));
  // else each panel is packed where and when it is needed
  const bool shared = plan.blocks > 1 || weights_are_kept();
  bool ready = false;
  float* const all = shared ? packed_weights(0, plan.panels * panel, ready) : nullptr;
#pragma omp parallel num_threads(static_cast<int>(plan.threads))
  {
    float* const own = floats(1, shared ? 0 : group * panel);
    float* const packed = floats(2, plan.packed ? most * plan.tile_size : 0);
    void* const lists = scratch(3, static_cast<size_t>(2 * most * kTileRows + 1) * sizeof(float*));
    if (shared && !ready) {
#pragma omp for schedule(static)
      for (int64_t q = 0; q < plan.panels; q += group) pack(q, smaller(q + group, plan.panels), all + q * panel);
    }
    const auto weights = [&](int64_t q0, int64_t q1) -> const float* {
      if (shared) return all + q0 * panel;
      pack(q0, q1, own);
      return own;
    };
    const int64_t threads = omp_get_num_threads(), me = omp_get_thread_num();
    const int64_t begin = items * me / threads, end = items * (me + 1) / threads;
    for (int64_t item = begin; item < end; ++item) {
      const int64_t part = item % plan.parts, next = item + 1 < end ? (item + 1) / plan.parts : plan.blocks;
      run_block(p, plan, item / plan.parts, next, plan.panels * part / plan.parts,
                plan.panels * (part + 1) / plan.parts, shared ? plan.panels : group, weights, packed, lists);
    }
  }
}

}  // namespace

bool is_pointwise(const Conv2dShape& g) {
  return g.r == 1 && g.s == 1 && g.groups == 1 && g.pad_top == 0 && g.pad_left == 0 && g.n > 0 &&
         (g.out_h() - 1) * g.stride_h < g.h && (g.out_w() - 1) * g.stride_w < g.w;
}

bool adds_residual(const Conv2dShape& g) { return is_pointwise(g) && g.k > kNarrow && g.c <= kDepth; }

void pointwise_forward(const Conv2dShape& g, const float* x, const float* weight, const Epilogue& e, float* y) {
  const Product p{g.n * g.out_h() * g.out_w(),
                  g.c,
                  g.k,
                  input_pixels(g),
                  output_pixels(g),
                  x,
                  y,
                  e.bias,
                  e.relu,
                  0,
                  0,
                  e.finish,
                  e.residual};
  if (is_narrow(p)) return run_narrow(p, [=](int64_t j, int64_t q) { return weight[j * g.k + q]; });
  run(p, [=](int64_t q0, int64_t q1, float* to) { pack_weights(weight, g.c, g.k, q0, q1, to); });
}

namespace {

Product gradient_product(const Conv2dShape& g, const float* dy, const float* bias, float* dx) {
  return {
      g.n * g.out_h() * g.out_w(), g.k, g.c, output_pixels(g), input_pixels(g), dy, dx, bias, false, g.h, g.w, nullptr};
}

void run_gradient(const Conv2dShape& g, const Product& p, const float* weight) {
  run(p, [=](int64_t q0, int64_t q1, float* to) {
    for (int64_t q = q0; q < q1; ++q) {
      const int64_t columns = smaller(kPanel, g.c - q * kPanel), width = columns > kLanes ? kPanel : kLanes;
      pack_transposed(weight + q * kPanel * g.k, g.k, columns, g.k, to + (q - q0) * kPanel * g.k, width, width);
    }
  });
}

}  // namespace

void pointwise_backward_data(const Conv2dShape& g, const float* dy, const float* weight, const float* bias, float* dx) {
  const Product p = gradient_product(g, dy, bias, dx);
  if (is_narrow(p)) return run_narrow(p, [=](int64_t j, int64_t q) { return weight[q * g.k + j]; });
  run_gradient(g, p, weight);
}

bool pointwise_backward_data_onto(const Conv2dShape& g, const float* dy, const float* weight, const float* before,
                                  float* dx) {
  Product p = gradient_product(g, dy, nullptr, dx);
  if (is_narrow(p) || p.out.line || p.c > kDepth) return false;  // gaps, and sums in several parts, are not worth it
  p.before = before;
  run_gradient(g, p, weight);
  return true;
}

}  // namespace medmpi::MEDMPI_ISA
