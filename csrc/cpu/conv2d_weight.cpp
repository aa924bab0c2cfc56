// Gradient of a convolution for its weight: for each tap (r, s) a product of a (pixels, c) and a (pixels, k) matrix.
// The pixels are cut into blocks (some images, or some rows of one); a block of x is packed as tiles of kTileRows
// channels, one of dy as panels of kPanel channels, so that a tile, a panel and all taps work in the first-level cache.
// A register tile sums a whole block, then goes to dweight: sums stay short, and their order depends on the shape
// alone. A filter of few channels joins the taps of a row into one tile: on a padded row of x, (s, c) is contiguous.
// Threads share out chunks of blocks, each with a gradient of its own, where that is small; else panels and tiles.
// Scratch slots: 10 (packed x), 11 (packed dy) of each thread, 12 (gradients of the chunks) of the calling thread.
#include "cpu/conv2d_weight.h"

#include "cpu/sizes.h"
#include "cpu/threads.h"
#include "cpu/tile.h"
#include "ops/scratch.h"

namespace medmpi::MEDMPI_ISA {
namespace {

constexpr int64_t kBlockPixels = 192;        // a packed panel and a packed tile of so many pixels share 48 KB
constexpr int64_t kLargeGradient = 1 << 20;  // floats; beyond the second-level cache: visit it half as often
constexpr int64_t kChunkFloats = 5 << 16;    // all chunks' gradients together
constexpr int64_t kMaxChunks = 16, kMinChunks = 8;

/// The pixels that one register tile sums: images of rows of pixels, at given distances in packed x and packed dy.
struct Sweep {
  int64_t images, x_image, dy_image;
  int64_t rows, x_row, dy_row;
  int64_t pixels, x_pixel, dy_pixel;
  int64_t x_group;  // from one group of a tile's rows to the next
};

using SweepKernel = void (*)(const Sweep& sweep, const float* x, const float* dy, const TileOut& out);

template <int Groups, int Rows, int Vecs>
MEDMPI_INLINE void sweep_sum(const Sweep& w, const float* x, const float* dy, const TileOut& out) {
  Vec acc[Groups * Rows][Vecs] = {};
  for (int64_t n = 0; n < w.images; ++n)
    for (int64_t i = 0; i < w.rows; ++i) {
      const float* a = x + n * w.x_image + i * w.x_row;
      const float* b = dy + n * w.dy_image + i * w.dy_row;
      if constexpr (Groups == 1) {
        tile_multiply(acc, w.pixels, a, w.x_pixel, b, w.dy_pixel);
      } else {
        for (int64_t p = 0; p < w.pixels; ++p, a += w.x_pixel, b += w.dy_pixel) {
          Vec column[Vecs];
#pragma GCC unroll 2
          for (int v = 0; v < Vecs; ++v) column[v] = load(b + v * kLanes);
#pragma GCC unroll 16
          for (int q = 0; q < Groups * Rows; ++q) {
            const Vec row = broadcast(a[q / Rows * w.x_group + q % Rows]);
#pragma GCC unroll 2
            for (int v = 0; v < Vecs; ++v) acc[q][v] += row * column[v];
          }
        }
      }
    }
  tile_store(acc, out);
}

template <int Groups, int Rows>
__attribute__((noinline)) void sweep_tile(const Sweep& sweep, const float* x, const float* dy, const TileOut& out) {
  for (int i = 0; i < Groups * Rows; ++i)  // needed only after the sweep: time enough to fetch it
    for (int64_t j = 0; j < out.cols; j += 16) __builtin_prefetch(out.data + i * out.row + j, 1);
  if (out.cols > kLanes)
    sweep_sum<Groups, Rows, 2>(sweep, x, dy, out);
  else
    sweep_sum<Groups, Rows, 1>(sweep, x, dy, out);
}

SweepKernel sweep_kernel(int64_t groups, int64_t rows) {
#if defined(__AVX512F__)
  static constexpr SweepKernel one[] = {sweep_tile<1, 1>,  sweep_tile<1, 2>,  sweep_tile<1, 3>,  sweep_tile<1, 4>,
                                        sweep_tile<1, 5>,  sweep_tile<1, 6>,  sweep_tile<1, 7>,  sweep_tile<1, 8>,
                                        sweep_tile<1, 9>,  sweep_tile<1, 10>, sweep_tile<1, 11>, sweep_tile<1, 12>,
                                        sweep_tile<1, 13>, sweep_tile<1, 14>};
  static constexpr SweepKernel two[] = {sweep_tile<2, 1>, sweep_tile<2, 2>, sweep_tile<2, 3>, sweep_tile<2, 4>,
                                        sweep_tile<2, 5>, sweep_tile<2, 6>, sweep_tile<2, 7>};
  static constexpr SweepKernel three[] = {sweep_tile<3, 1>, sweep_tile<3, 2>, sweep_tile<3, 3>, sweep_tile<3, 4>};
#else
  static constexpr SweepKernel one[] = {sweep_tile<1, 1>, sweep_tile<1, 2>, sweep_tile<1, 3>,
                                        sweep_tile<1, 4>, sweep_tile<1, 5>, sweep_tile<1, 6>};
  static constexpr SweepKernel two[] = {sweep_tile<2, 1>, sweep_tile<2, 2>, sweep_tile<2, 3>};
  static constexpr SweepKernel three[] = {sweep_tile<3, 1>, sweep_tile<3, 2>};
#endif
  return (groups == 1 ? one : groups == 2 ? two : three)[rows - 1];
}

/// Output positions [begin, end) whose input position o * stride - pad + offset lies inside [0, size).
struct Range {
  int64_t begin, end;
};
Range valid(int64_t outputs, int64_t size, int64_t stride, int64_t pad, int64_t offset) {
  const int64_t first = pad - offset;  // where input position 0 lies
  const int64_t begin = first > 0 ? ceil_div(first, stride) : 0;
  const int64_t end = size + first > 0 ? smaller(ceil_div(size + first, stride), outputs) : 0;
  return {smaller(begin, end), end};
}

/// One group of the convolution and how its work is cut.
struct Plan {
  Conv2dShape g;
  int64_t oh, ow, gc, gk;
  const float *dy, *x;               // the group's first channel
  int64_t x_image, x_line, x_pixel;  // floats from one image, row, pixel of x to the next
  bool joint;                        // a tile's rows are (s, c), or several filter rows of them
  int64_t rows;                      // all rows of tiles: gc, or s * gc
  int64_t tiles, panels;
  int64_t images, lines, line_blocks, blocks;  // of a block; of an image; of all

  /// Tiles are nearly equal, the first ones a row longer.
  int64_t tile_begin(int64_t t) const { return rows / tiles * t + smaller(t, rows % tiles); }
  Range tile(int64_t t) const { return {tile_begin(t), tile_begin(t + 1)}; }
  // one line more than a multiple of the cache's sets: tiles packed side by side do not collide
  int64_t tile_stride(int64_t pixels) const { return (pixels | 1) * kPitch; }
  int64_t panel_stride(int64_t pixels) const { return (pixels | 1) * kPanel; }
};

/// What one block covers: images [n0, n1), rows [i0, i1) of dy, rows [h0, h1) of x.
struct Block {
  int64_t n0, n1, i0, i1, h0, h1;
};

Plan make_plan(const Conv2dShape& g, const float* dy, const float* x) {
  Plan p{};
  p.g = g;
  p.oh = g.out_h(), p.ow = g.out_w(), p.gc = g.group_c(), p.gk = g.group_k();
  p.dy = dy, p.x = x;
  p.x_image = g.h * g.w * g.c, p.x_line = g.w * g.c, p.x_pixel = g.c;
  const bool inside = (p.oh - 1) * g.stride_h < g.h && (p.ow - 1) * g.stride_w < g.w;
  if (g.r == 1 && g.s == 1 && !g.pad_top && !g.pad_left && inside) {  // the pixels that are read, as a dense image
    p.x_line *= g.stride_h, p.x_pixel *= g.stride_w;
    p.g.h = p.oh, p.g.w = p.ow, p.g.stride_h = p.g.stride_w = 1;
    if (g.stride_h == 1 && p.oh == g.h) p.g.h = p.oh = g.n * g.h, p.g.n = 1;  // one tall image
  }
  const int64_t target = g.r * g.s * p.gc * g.k > kLargeGradient ? 2 * kBlockPixels : kBlockPixels;
  p.joint = g.s > 1 && g.dilation_w == 1 && p.gc < 8 && p.gc < kTileRows;
  p.rows = p.joint ? g.s * p.gc : p.gc;
  p.tiles = ceil_div(p.rows, kTileRows);
  p.panels = ceil_div(p.gk, kPanel);
  p.images = larger(1, smaller(p.g.n, target / (p.oh * p.ow)));
  p.line_blocks = p.images > 1 ? 1 : ceil_div(p.oh, larger(1, target / p.ow));
  p.lines = ceil_div(p.oh, p.line_blocks);
  p.blocks = ceil_div(p.g.n, p.images) * p.line_blocks;
  return p;
}

Block make_block(const Plan& p, int64_t index) {
  const Conv2dShape& g = p.g;
  Block b{};
  b.n0 = index / p.line_blocks * p.images, b.n1 = smaller(b.n0 + p.images, g.n);
  b.i0 = smaller(index % p.line_blocks * p.lines, p.oh), b.i1 = smaller(b.i0 + p.lines, p.oh);
  b.h0 = b.i0 * g.stride_h - g.pad_top, b.h1 = (b.i1 - 1) * g.stride_h - g.pad_top + (g.r - 1) * g.dilation_h + 1;
  if (!p.joint) b.h0 = smaller(larger(b.h0, 0), g.h), b.h1 = larger(smaller(b.h1, g.h), b.h0);
  return b;
}

/// Rows of packed x in the largest block.
int64_t max_rows(const Plan& p) { return (p.lines - 1) * p.g.stride_h + (p.g.r - 1) * p.g.dilation_h + 1; }

/// Floats of one row of joint x: the padded row, and what the last tile reads beyond it.
int64_t joint_row(const Plan& p) { return ((p.ow - 1) * p.g.stride_w + p.g.s) * p.gc + kLanes; }

size_t x_bytes(const Plan& p) {
  const int64_t rows = p.images * max_rows(p);
  return sizeof(float) *
         static_cast<size_t>(p.joint ? rows * joint_row(p) + kLanes : p.tiles * p.tile_stride(rows * p.g.w));
}
size_t dy_bytes(const Plan& p) {
  return sizeof(float) * static_cast<size_t>(p.panels * p.panel_stride(p.images * p.lines * p.ow));
}

/// Panels [panel0, panel1), pixel by pixel: dy is read in memory order.
void pack_dy(const Plan& p, const Block& b, int64_t panel0, int64_t panel1, float* to) {
  const int64_t pixels = (b.i1 - b.i0) * p.ow, stride = p.panel_stride(pixels * (b.n1 - b.n0));
  for (int64_t n = b.n0; n < b.n1; ++n) {
    const float* from = p.dy + (n * p.oh + b.i0) * p.ow * p.g.k;
    for (int64_t j = 0; j < pixels; ++j, from += p.g.k, to += kPanel)
      for (int64_t q = panel0; q < panel1; ++q)
        pack_rows(from + q * kPanel, 0, smaller(kPanel, p.gk - q * kPanel), 1, to + (q - panel0) * stride, 0, kPanel);
  }
}

/// Tiles [tile0, tile1), pixel by pixel.
void pack_x(const Plan& p, const Block& b, int64_t tile0, int64_t tile1, float* to) {
  const int64_t height = b.h1 - b.h0, stride = p.tile_stride(height * p.g.w * (b.n1 - b.n0));
  const int64_t base = p.rows / p.tiles, longer = p.rows % p.tiles, first = p.tile_begin(tile0);
  for (int64_t n = b.n0; n < b.n1; ++n)
    for (int64_t h = b.h0; h < b.h1; ++h)
      for (int64_t w = 0; w < p.g.w; ++w, to += kPitch) {
        const float* from = p.x + n * p.x_image + h * p.x_line + w * p.x_pixel + first;
        for (int64_t t = tile0; t < tile1; ++t) {
          const int64_t count = base + (t < longer);
          pack_rows(from, 0, count, 1, to + (t - tile0) * stride, 0, kPitch);
          from += count;
        }
      }
}

/// Rows of x with their padding, so that no tap leaves them.
void pack_joint(const Plan& p, const Block& b, float* to) {
  const Conv2dShape& g = p.g;
  const int64_t row = joint_row(p), width = (p.ow - 1) * g.stride_w + g.s;
  const int64_t first = larger(0, g.pad_left), last = larger(first, smaller(width, g.w + g.pad_left));
  for (int64_t n = b.n0; n < b.n1; ++n)
    for (int64_t h = b.h0; h < b.h1; ++h, to += row) {
      const bool inside = h >= 0 && h < g.h;
      const int64_t begin = inside ? first : width, end = inside ? last : width;
      for (int64_t i = 0; i < begin * p.gc; ++i) to[i] = 0.0f;
      const float* from = p.x + ((n * g.h + h) * g.w - g.pad_left) * g.c;
      if (p.gc == g.c)
        for (int64_t i = begin * p.gc; i < end * p.gc; ++i) to[i] = from[i];
      else
        for (int64_t j = begin; j < end; ++j)
          for (int64_t c = 0; c < p.gc; ++c) to[j * p.gc + c] = from[j * g.c + c];
      for (int64_t i = end * p.gc; i < row; ++i) to[i] = 0.0f;
    }
}

/// All taps of one tile and one panel over one block.
void sum_taps(const Plan& p, const Block& b, int64_t tile, int64_t panel, const float* x, const float* dy,
              float* dweight) {
  const Conv2dShape& g = p.g;
  const Range rows = p.tile(tile);
  const int64_t height = b.h1 - b.h0, lines = b.i1 - b.i0;
  for (int64_t r = 0; r < g.r; ++r) {
    Range is = valid(p.oh, g.h, g.stride_h, g.pad_top, r * g.dilation_h);
    is = {larger(is.begin, b.i0), smaller(is.end, b.i1)};
    if (is.begin >= is.end) continue;
    for (int64_t s = 0; s < g.s; ++s) {
      const Range js = valid(p.ow, g.w, g.stride_w, g.pad_left, s * g.dilation_w);
      if (js.begin >= js.end) continue;
      const int64_t h = is.begin * g.stride_h - g.pad_top + r * g.dilation_h - b.h0;
      const int64_t w = js.begin * g.stride_w - g.pad_left + s * g.dilation_w;
      Sweep sweep{b.n1 - b.n0,
                  height * g.w * kPitch,
                  lines * p.ow * kPanel,
                  is.end - is.begin,
                  g.stride_h * g.w * kPitch,
                  p.ow * kPanel,
                  js.end - js.begin,
                  g.stride_w * kPitch,
                  kPanel,
                  0};
      if (sweep.pixels * sweep.x_pixel == sweep.x_row && sweep.pixels == p.ow) {  // rows follow one another
        sweep.pixels *= sweep.rows;
        sweep.rows = 1;
      }
      const TileOut out{dweight + ((r * g.s + s) * p.gc + rows.begin) * g.k + panel * kPanel, g.k,
                        smaller(kPanel, p.gk - panel * kPanel), true, nullptr};
      sweep_kernel(1, rows.end - rows.begin)(sweep, x + (h * g.w + w) * kPitch,
                                             dy + ((is.begin - b.i0) * p.ow + js.begin) * kPanel, out);
    }
  }
}

/// The same where a tile holds the taps of a filter row, or of several.
void sum_joint(const Plan& p, const Block& b, int64_t tile, int64_t panel, const float* x, const float* dy,
               float* dweight) {
  const Conv2dShape& g = p.g;
  const Range rows = p.tile(tile);
  const int64_t count = rows.end - rows.begin, row = joint_row(p), lines = b.i1 - b.i0;
  const int64_t together = p.tiles == 1 ? larger(1, smaller(smaller(3, g.r), kTileRows / count)) : 1;
  for (int64_t r = 0; r < g.r; r += together) {
    const int64_t groups = smaller(together, g.r - r);
    const Sweep sweep{b.n1 - b.n0,
                      (b.h1 - b.h0) * row,
                      lines * p.ow * kPanel,
                      lines,
                      g.stride_h * row,
                      p.ow * kPanel,
                      p.ow,
                      g.stride_w * p.gc,
                      kPanel,
                      g.dilation_h * row};
    const TileOut out{dweight + (r * p.rows + rows.begin) * g.k + panel * kPanel, g.k,
                      smaller(kPanel, p.gk - panel * kPanel), true, nullptr};
    sweep_kernel(groups, count)(sweep, x + r * g.dilation_h * row + rows.begin, dy, out);
  }
}

/// Panels [panel0, panel1) by tiles [tile0, tile1) of a block.
void sum_block(const Plan& p, const Block& b, int64_t panel0, int64_t panel1, int64_t tile0, int64_t tile1,
               float* packed_x, float* packed_dy, float* dweight) {
  const int64_t tile = p.tile_stride((b.n1 - b.n0) * (b.h1 - b.h0) * p.g.w);
  const int64_t panel = p.panel_stride((b.n1 - b.n0) * (b.i1 - b.i0) * p.ow);
  if (p.joint)
    pack_joint(p, b, packed_x);
  else
    pack_x(p, b, tile0, tile1, packed_x);
  pack_dy(p, b, panel0, panel1, packed_dy);
  for (int64_t q = panel0; q < panel1; ++q, packed_dy += panel)
    for (int64_t t = tile0; t < tile1; ++t)
      if (p.joint)
        sum_joint(p, b, t, q, packed_x, packed_dy, dweight);
      else
        sum_taps(p, b, t, q, packed_x + (t - tile0) * tile, packed_dy, dweight);
}

/// Threads take whole chunks of blocks; the chunks' gradients are added in order.
void by_chunks(const Plan& p, int64_t chunks, float* dweight) {
  const Conv2dShape& g = p.g;
  const int64_t rows = g.r * g.s * p.gc, size = rows * g.k;
  float* const parts = static_cast<float*>(scratch(12, sizeof(float) * static_cast<size_t>(chunks * size)));
#pragma omp parallel
  {
    float* const packed_x = static_cast<float*>(scratch(10, x_bytes(p)));
    float* const packed_dy = static_cast<float*>(scratch(11, dy_bytes(p)));
#pragma omp for schedule(static)
    for (int64_t i = 0; i < chunks; ++i) {
      std::memset(parts + i * size, 0, sizeof(float) * static_cast<size_t>(size));
      for (int64_t b = p.blocks * i / chunks; b < p.blocks * (i + 1) / chunks; ++b)
        sum_block(p, make_block(p, b), 0, p.panels, 0, p.tiles, packed_x, packed_dy, parts + i * size);
    }
#pragma omp for schedule(static)
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t i = 0; i < chunks; ++i)
        for (int64_t k = 0; k < p.gk; ++k) dweight[row * g.k + k] += parts[i * size + row * g.k + k];
  }
}

/// Threads take panels, or parts of their tiles where there are few, and sum all blocks.
void by_panels(const Plan& p, float* dweight) {
#pragma omp parallel
  {
    const int64_t threads = omp_get_num_threads(), me = omp_get_thread_num();
    const int64_t parts = p.panels >= 2 * threads ? 1 : smaller(p.tiles, ceil_div(2 * threads, p.panels));
    const int64_t begin = p.panels * parts * me / threads, end = p.panels * parts * (me + 1) / threads;
    if (begin < end) {
      float* const packed_x = static_cast<float*>(scratch(10, x_bytes(p)));
      float* const packed_dy = static_cast<float*>(scratch(11, dy_bytes(p)));
      for (int64_t b = 0; b < p.blocks; ++b) {
        const Block block = make_block(p, b);
        for (int64_t u = begin; u < end;) {  // whole panels together, so that x is packed once for them
          const int64_t part = u % parts, panel = u / parts;
          const int64_t stop = part ? smaller(end, (panel + 1) * parts) : end - u < parts ? end : end / parts * parts;
          const int64_t last = part || stop - u < parts ? part + stop - u : parts;
          sum_block(p, block, panel, larger(panel + 1, stop / parts), p.tiles * part / parts, p.tiles * last / parts,
                    packed_x, packed_dy, dweight);
          u = stop;
        }
      }
    }
  }
}

}  // namespace

void conv2d_backward_weight(const Conv2dShape& g, const float* dy, const float* x, float* dweight) {
  if (g.n <= 0 || g.c <= 0 || g.k <= 0 || g.out_h() <= 0 || g.out_w() <= 0) return;
  for (int64_t group = 0; group < g.groups; ++group) {
    const Plan p = make_plan(g, dy + group * g.group_k(), x + group * g.group_c());
    float* const out = dweight + group * g.group_k();
    const int64_t chunks = smaller(smaller(p.blocks, kMaxChunks), kChunkFloats / (g.r * g.s * p.gc * g.k));
    if (chunks >= smaller(p.blocks, kMinChunks))
      by_chunks(p, chunks, out);
    else
      by_panels(p, out);
  }
}

}  // namespace medmpi::MEDMPI_ISA
