// Gradient of a 3x3 convolution for its weight by Winograd's minimal algorithm F(3x3, 4x4) (Lavin and Gray, 2015) with
// the points 0, +-5/8, +-3/2: a tile of 4x4 pixels of dy and the 6x6 pixels of x under it are each transformed to 36
// values per channel; their products, summed over tiles, are 36 matrix products (c, tiles) x (tiles, k) in place of the
// 144 that the taps and pixels would need; and the sums transform back to 3x3. 5x5 filters go by F(5x5, 2x2): tiles of
// 2x2 pixels of dy, 36 products for 100.
// A block of tiles is transformed at once; then a part of the channels of x and a panel of those of dy go through all
// 36 products and back into dweight while they are in the second-level cache. So the sums are short, dweight is the
// only thing carried from block to block, and the order of sums depends on the shape alone. Threads share out chunks of
// tiles, each with a gradient of its own, where that is small; else parts and panels. Scratch slots: 10 (transformed
// x), 11 (transformed dy), 13 (products) of each thread that holds them, 12 (gradients of the chunks) of the calling
// thread.
#include "cpu/winograd_weight.h"

#include "cpu/gemm.h"
#include "cpu/winograd.h"

namespace medmpi::MEDMPI_ISA {
namespace {

constexpr int64_t kPoints = 36;
constexpr int64_t kPartTiles = 3;                   // row tiles of one part
constexpr int64_t kBlockFloats = 380 * 1000;        // transformed x and dy of a block: 1.5 MB
constexpr int64_t kMinBlock = 64, kMaxBlock = 128;  // tiles
constexpr int64_t kChunkFloats = 5 << 16;           // all chunks' gradients together
constexpr int64_t kMaxChunks = 16, kMinChunks = 8;

struct Plan {
  Conv2dShape g;
  const float *dy, *x;
  int64_t out;                          // pixels of dy of a tile in one dimension
  int64_t oh, ow, down, across, tiles;  // tiles of an image, and of the batch
  int64_t block;                        // tiles at a time
  int64_t row_tiles, parts, panels;
  int64_t x_row, x_point, dy_point, u_point;  // floats from one tile, or one of the 36 points, to the next

  int64_t x_size() const { return kPoints * x_point; }
  int64_t dy_size() const { return kPoints * dy_point; }
  int64_t u_size() const { return kPoints * u_point; }
};

/// At least `count` floats and an odd number of cache lines: the 36 streams of a transform must not meet in one set of
/// the cache.
int64_t odd_lines(int64_t count) { return ((count + 15) / 16 | 1) * 16; }

Plan make_plan(const Conv2dShape& g, const float* dy, const float* x) {
  Plan p{};
  p.g = g, p.dy = dy, p.x = x;
  p.oh = g.out_h(), p.ow = g.out_w();
  p.out = kWinogradInputs + 1 - g.r;
  p.down = (p.oh + p.out - 1) / p.out, p.across = (p.ow + p.out - 1) / p.out, p.tiles = g.n * p.down * p.across;
  p.row_tiles = (g.c + kTileRows - 1) / kTileRows, p.parts = (p.row_tiles + kPartTiles - 1) / kPartTiles;
  p.panels = (g.k + kPanel - 1) / kPanel;
  const int64_t fit = kBlockFloats / (kPoints * (g.c + g.k));
  p.block = smaller(p.tiles, fit < kMinBlock ? kMinBlock : smaller(fit, g.r == 3 ? kMaxBlock : kMaxBlock / 2));
  p.x_row = odd_lines(g.c + kLanes - 1);
  p.x_point = odd_lines(p.block * p.x_row);
  p.dy_point = odd_lines(p.panels * p.block * kPanel);
  p.u_point = odd_lines(kPartTiles * kTileRows * kPanel);
  return p;
}

/// The vector of `count` channels at a pixel, or zeros outside the image.
MEDMPI_INLINE Vec pixel(const float* image, int64_t i, int64_t j, int64_t h, int64_t w, int64_t c, int64_t count) {
  if (i < 0 || i >= h || j < 0 || j >= w) return Vec{};
  const float* at = image + (i * w + j) * c;
  return count >= kLanes ? load(at) : load_part(at, count);
}

/// Transforms the x of tile `tile`, the t-th of its block.
void put_x(const Plan& p, int64_t tile, int64_t t, float* to) {
  const Conv2dShape& g = p.g;
  const int64_t n = tile / (p.down * p.across), i0 = tile / p.across % p.down * p.out - g.pad_top;
  const int64_t j0 = tile % p.across * p.out - g.pad_left;
  const bool inside = i0 >= 0 && j0 >= 0 && i0 + 6 <= g.h && j0 + 6 <= g.w;
  const float* image = p.x + n * g.h * g.w * g.c;
  for (int64_t c = 0; c < g.c; c += kLanes) {
    const int64_t count = g.c - c;
    Vec half[6][6];
#pragma GCC unroll 6
    for (int j = 0; j < 6; ++j) {
      Vec d[6], o[6];
      if (inside && count >= kLanes) {
#pragma GCC unroll 6
        for (int i = 0; i < 6; ++i) d[i] = load(image + ((i0 + i) * g.w + j0 + j) * g.c + c);
      } else {
#pragma GCC unroll 6
        for (int i = 0; i < 6; ++i) d[i] = pixel(image + c, i0 + i, j0 + j, g.h, g.w, g.c, count);
      }
      winograd_input(d, o);
#pragma GCC unroll 6
      for (int i = 0; i < 6; ++i) half[i][j] = o[i];
    }
    float* at = to + t * p.x_row + c;
#pragma GCC unroll 6
    for (int i = 0; i < 6; ++i) {
      Vec o[6];
      winograd_input(half[i], o);
#pragma GCC unroll 6
      for (int j = 0; j < 6; ++j) store(at + (i * 6 + j) * p.x_point, o[j]);
    }
  }
}

/// Transforms the dy of a tile, as panels of kPanel channels.
template <int Out>
void put_dy(const Plan& p, int64_t tile, int64_t t, float* to) {
  const int64_t n = tile / (p.down * p.across), i0 = tile / p.across % p.down * Out, j0 = tile % p.across * Out;
  const bool inside = i0 + Out <= p.oh && j0 + Out <= p.ow;
  const int64_t k_all = p.g.k;
  const float* image = p.dy + n * p.oh * p.ow * k_all;
  for (int64_t k = 0; k < p.panels * kPanel; k += kLanes) {
    const int64_t count = k_all - k;
    Vec half[6][Out];
#pragma GCC unroll 4
    for (int j = 0; j < Out; ++j) {
      Vec d[Out], o[6];
      if (inside && count >= kLanes) {
#pragma GCC unroll 4
        for (int i = 0; i < Out; ++i) d[i] = load(image + ((i0 + i) * p.ow + j0 + j) * k_all + k);
      } else {
#pragma GCC unroll 4
        for (int i = 0; i < Out; ++i)
          d[i] = count > 0 ? pixel(image + k, i0 + i, j0 + j, p.oh, p.ow, k_all, count) : Vec{};
      }
      winograd_filter(d, o);
#pragma GCC unroll 6
      for (int i = 0; i < 6; ++i) half[i][j] = o[i];
    }
    float* at = to + (k / kPanel * p.block + t) * kPanel + k % kPanel;
#pragma GCC unroll 6
    for (int i = 0; i < 6; ++i) {
      Vec o[6];
      winograd_filter(half[i], o);
#pragma GCC unroll 6
      for (int j = 0; j < 6; ++j) store(at + (i * 6 + j) * p.dy_point, o[j]);
    }
  }
}

template <int Rows>
__attribute__((noinline)) void product(int64_t depth, const float* a, int64_t a_step, const float* b, float* c) {
  Vec acc[Rows][2] = {};
  tile_multiply(acc, depth, a, a_step, b, kPanel);
  tile_store(acc, {c, kPanel, kPanel, false, nullptr});
}
using Product = void (*)(int64_t depth, const float* a, int64_t a_step, const float* b, float* c);
#if defined(__AVX512F__)
constexpr Product kProducts[] = {product<1>,  product<2>,  product<3>,  product<4>, product<5>,
                                 product<6>,  product<7>,  product<8>,  product<9>, product<10>,
                                 product<11>, product<12>, product<13>, product<14>};
#else
constexpr Product kProducts[] = {product<1>, product<2>, product<3>, product<4>, product<5>, product<6>};
#endif

/// A part of the rows by a panel of a block of `depth` tiles: 36 products, then back into dweight.
template <int Taps>
void products(const Plan& p, int64_t depth, int64_t part, int64_t panel, const float* tx, const float* tdy, float* u,
              float* dweight) {
  const int64_t t0 = p.row_tiles * part / p.parts, t1 = p.row_tiles * (part + 1) / p.parts;
  const int64_t first = tile_begin(p.g.c, p.row_tiles, t0), rows = tile_begin(p.g.c, p.row_tiles, t1) - first;
  // the gradient comes from memory in short runs, which hardware does not foresee
  const int64_t lines = is_far(4 * Taps * Taps * p.g.c * p.g.k) ? Taps * Taps * rows : 0;
  const int64_t last = smaller(kPanel, p.g.k - panel * kPanel) - 1;
  for (int64_t point = 0; point < kPoints; ++point) {
    for (int64_t i = lines * point / kPoints; i < lines * (point + 1) / kPoints; ++i) {
      const float* const at = dweight + (i / rows * p.g.c + first + i % rows) * p.g.k + panel * kPanel;
      __builtin_prefetch(at, 1, 2);
      __builtin_prefetch(at + last, 1, 2);
    }
    for (int64_t t = t0; t < t1; ++t) {
      const int64_t row = tile_begin(p.g.c, p.row_tiles, t), end = tile_begin(p.g.c, p.row_tiles, t + 1);
      kProducts[end - row - 1](depth, tx + point * p.x_point + row, p.x_row,
                               tdy + point * p.dy_point + panel * p.block * kPanel,
                               u + point * p.u_point + (row - first) * kPanel);
    }
  }
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t v = 0; v < kPanel; v += kLanes) {
      const int64_t k = panel * kPanel + v, count = p.g.k - k;
      if (count <= 0) break;
      Vec half[Taps][6];
#pragma GCC unroll 6
      for (int j = 0; j < 6; ++j) {
        Vec m[6], o[Taps];
#pragma GCC unroll 6
        for (int i = 0; i < 6; ++i) m[i] = load(u + (i * 6 + j) * p.u_point + row * kPanel + v);
        winograd_output(m, o);
#pragma GCC unroll 5
        for (int i = 0; i < Taps; ++i) half[i][j] = o[i];
      }
#pragma GCC unroll 5
      for (int r = 0; r < Taps; ++r) {
        Vec o[Taps];
        winograd_output(half[r], o);
#pragma GCC unroll 5
        for (int s = 0; s < Taps; ++s) {
          float* at = dweight + ((r * Taps + s) * p.g.c + first + row) * p.g.k + k;
          if (count >= kLanes)
            store(at, load(at) + o[s]);
          else
            store_part(at, load_part(at, count) + o[s], count);
        }
      }
    }
}

float* floats(int slot, int64_t count) {
  return static_cast<float*>(scratch(slot, sizeof(float) * static_cast<size_t>(count)));
}

/// Threads take whole chunks of blocks; the chunks' gradients are added in order.
template <int Taps>
void by_chunks(const Plan& p, int64_t chunks, float* dweight) {
  const int64_t size = Taps * Taps * p.g.c * p.g.k, blocks = (p.tiles + p.block - 1) / p.block;
  float* const sums = floats(12, chunks * size);
#pragma omp parallel
  {
    float *const tx = floats(10, p.x_size()), *const tdy = floats(11, p.dy_size()), *const u = floats(13, p.u_size());
#pragma omp for schedule(static)
    for (int64_t i = 0; i < chunks; ++i) {
      std::memset(sums + i * size, 0, sizeof(float) * static_cast<size_t>(size));
      for (int64_t b = blocks * i / chunks; b < blocks * (i + 1) / chunks; ++b) {
        const int64_t first = b * p.block, depth = smaller(p.block, p.tiles - first);
        for (int64_t t = 0; t < depth; ++t) {
          put_x(p, first + t, t, tx);
          put_dy<kWinogradInputs + 1 - Taps>(p, first + t, t, tdy);
        }
        for (int64_t panel = 0; panel < p.panels; ++panel)
          for (int64_t part = 0; part < p.parts; ++part)
            products<Taps>(p, depth, part, panel, tx, tdy, u, sums + i * size);
      }
    }
#pragma omp for schedule(static)
    for (int64_t row = 0; row < Taps * Taps * p.g.c; ++row)
      for (int64_t i = 0; i < chunks; ++i)
        for (int64_t k = 0; k < p.g.k; ++k) dweight[row * p.g.k + k] += sums[i * size + row * p.g.k + k];
  }
}

/// All threads transform a block, then take parts and panels of its products.
template <int Taps>
void by_panels(const Plan& p, float* dweight) {
  float *const tx = floats(10, p.x_size()), *const tdy = floats(11, p.dy_size());
#pragma omp parallel
  {
    float* const u = floats(13, p.u_size());
    for (int64_t first = 0; first < p.tiles; first += p.block) {
      const int64_t depth = smaller(p.block, p.tiles - first);
#pragma omp for schedule(static)
      for (int64_t t = 0; t < depth; ++t) {
        put_x(p, first + t, t, tx);
        put_dy<kWinogradInputs + 1 - Taps>(p, first + t, t, tdy);
      }
#pragma omp for schedule(dynamic, 1)  // parts differ
      for (int64_t unit = 0; unit < p.panels * p.parts; ++unit)
        products<Taps>(p, depth, unit / p.panels, unit % p.panels, tx, tdy, u, dweight);
    }
  }
}

}  // namespace

bool winograd_weight_pays(const Conv2dShape& g) {
  if (!g.fits_winograd() || g.c < (g.r == 3 ? 32 : 16) || g.k < 32) return false;
  if (g.r == 5 && g.c * g.k > 2560) return false;  // the way back to 25 taps is long, and taken for each block
  const int64_t out = kWinogradInputs + 1 - g.r;
  const int64_t tiles = g.n * ((g.out_h() + out - 1) / out) * ((g.out_w() + out - 1) / out);
  // of the pixels computed, half or two thirds are there
  return tiles >= 16 && out * out * tiles * (g.r == 3 ? 3 : 4) <= 6 * g.n * g.out_h() * g.out_w();
}

void winograd_backward_weight(const Conv2dShape& g, const float* dy, const float* x, float* dweight) {
  if (g.n <= 0 || g.c <= 0 || g.k <= 0 || g.out_h() <= 0 || g.out_w() <= 0) return;
  const Plan p = make_plan(g, dy, x);
  const int64_t blocks = (p.tiles + p.block - 1) / p.block;
  const int64_t chunks = smaller(smaller(blocks, kMaxChunks), kChunkFloats / (g.r * g.s * g.c * g.k));
  if (chunks >= kMinChunks)
    g.r == 3 ? by_chunks<3>(p, chunks, dweight) : by_chunks<5>(p, chunks, dweight);
  else
    g.r == 3 ? by_panels<3>(p, dweight) : by_panels<5>(p, dweight);
}

}  // namespace medmpi::MEDMPI_ISA
