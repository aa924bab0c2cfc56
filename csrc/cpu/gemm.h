#pragma once
// Matrix product C = A B (+ bias) or C += A B in float32.
// The depth is cut in blocks of kDepth; a block of A is packed once for all threads (it stays in the second-level
// cache), and each thread packs a panel of B and runs all row tiles over it while the panel is in the first-level one.
// Threads share out columns, so every element is summed in the same order whatever their number.
// Scratch slots: 8 (packed A, of the calling thread), 9 (packed panels, of each thread).
#include "cpu/sizes.h"
#include "cpu/threads.h"
#include "cpu/tile.h"
#include "ops/scratch.h"

namespace medmpi::MEDMPI_ISA {
namespace {

/// A(i, p) = a[i * a_row + p * a_col], B(p, j) = b[p * b_row + j * b_col]; of each pair of strides one is 1.
struct Gemm {
  int64_t m, n, k;
  const float* a;
  int64_t a_row, a_col;
  const float* b;
  int64_t b_row, b_col;
  float* c;
  int64_t c_row;
  bool accumulate;
  const float* bias;  // null, or n values, where nothing is accumulated
};

constexpr int64_t kDepth = 256;
constexpr int64_t kTilesPerBlock = 32;      // packed A: at most 512 KB
constexpr int64_t kShallowBlock = 1 << 18;  // floats of packed B: 1 MB
constexpr int64_t kPanelsPerGroup = 4;      // B is read in runs long enough for the memory to stream

using TileKernel = void (*)(int64_t depth, const float* a, const float* b, const TileOut& out);

template <int Rows>
__attribute__((noinline)) void gemm_tile(int64_t depth, const float* a, const float* b, const TileOut& out) {
  if (out.accumulate)  // what is there is needed only after the whole depth: time enough to fetch it
    for (int i = 0; i < Rows; ++i) {
      __builtin_prefetch(out.data + i * out.row, 1);
      __builtin_prefetch(out.data + i * out.row + kPanel / 2, 1);
      __builtin_prefetch(out.data + i * out.row + kPanel - 1, 1);
    }
  if (out.cols > kLanes) {
    Vec acc[Rows][2] = {};
    tile_multiply(acc, depth, a, kPitch, b, kPanel);
    tile_store(acc, out);
  } else {
    Vec acc[Rows][1] = {};
    tile_multiply(acc, depth, a, kPitch, b, kPanel);
    tile_store(acc, out);
  }
}

inline TileKernel gemm_kernel(int64_t rows) {
#if defined(__AVX512F__)
  static constexpr TileKernel kernels[] = {gemm_tile<1>,  gemm_tile<2>,  gemm_tile<3>,  gemm_tile<4>, gemm_tile<5>,
                                           gemm_tile<6>,  gemm_tile<7>,  gemm_tile<8>,  gemm_tile<9>, gemm_tile<10>,
                                           gemm_tile<11>, gemm_tile<12>, gemm_tile<13>, gemm_tile<14>};
#else
  static constexpr TileKernel kernels[] = {gemm_tile<1>, gemm_tile<2>, gemm_tile<3>,
                                           gemm_tile<4>, gemm_tile<5>, gemm_tile<6>};
#endif
  return kernels[rows - 1];
}

/// The first row of nearly equal tile `i` of `tiles` over `rows`: no tile is left with a row or two.
inline int64_t tile_begin(int64_t rows, int64_t tiles, int64_t i) { return rows * i / tiles; }

inline void gemm_pack_a(const Gemm& g, int64_t row, int64_t rows, int64_t p0, int64_t depth, float* to) {
  const float* from = g.a + row * g.a_row + p0 * g.a_col;
  if (g.a_col == 1)
    pack_transposed(from, g.a_row, rows, depth, to, kPitch, kPitch);
  else
    pack_rows(from, g.a_col, rows, depth, to, kPitch, kPitch);
}

inline void gemm_pack_b(const Gemm& g, int64_t col, int64_t cols, int64_t p0, int64_t depth, float* to) {
  const float* from = g.b + p0 * g.b_row + col * g.b_col;
  for (int64_t j = 0; j < cols; j += kPanel, to += kDepth * kPanel) {
    const int64_t wide = smaller(kPanel, cols - j);
    if (g.b_col == 1)
      pack_rows(from + j, g.b_row, wide, depth, to, kPanel, kPanel);
    else
      pack_transposed(from + j * g.b_col, g.b_col, wide, depth, to, kPanel, kPanel);
  }
}

inline void gemm_one(const Gemm& g, int64_t p0, int64_t depth, int64_t tiles, int64_t t, int64_t col,
                     const float* packed_a, const float* packed_b) {
  const int64_t row = tile_begin(g.m, tiles, t), end = tile_begin(g.m, tiles, t + 1);
  const TileOut out{g.c + row * g.c_row + col, g.c_row, smaller(kPanel, g.n - col), g.accumulate || p0 > 0,
                    g.bias ? g.bias + col : nullptr};
  gemm_kernel(end - row)(depth, packed_a, packed_b, out);
}

/// The product of a short depth is bound by writing C: rows of tiles go along C in memory order, over a B that is
/// packed whole, as far as it fits the second-level cache.
inline void gemm_shallow(const Gemm& g, int64_t tiles, int64_t panels, int64_t threads) {
  const int64_t block = smaller(panels, kShallowBlock / (g.k > 0 ? g.k : 1) / kPanel);
  float* const packed_b = static_cast<float*>(scratch(8, sizeof(float) * static_cast<size_t>(block * kDepth * kPanel)));
#pragma omp parallel num_threads(static_cast<int>(smaller(threads, tiles)))
  {
    float* const packed_a = static_cast<float*>(scratch(9, sizeof(float) * static_cast<size_t>(kDepth * kPitch)));
    for (int64_t q0 = 0; q0 < panels; q0 += block) {
      const int64_t q1 = smaller(panels, q0 + block);
#pragma omp for schedule(static)
      for (int64_t q = q0; q < q1; ++q)
        gemm_pack_b(g, q * kPanel, smaller(kPanel, g.n - q * kPanel), 0, g.k, packed_b + (q - q0) * kDepth * kPanel);
#pragma omp for schedule(static)
      for (int64_t t = 0; t < tiles; ++t) {
        const int64_t row = tile_begin(g.m, tiles, t), end = tile_begin(g.m, tiles, t + 1);
        gemm_pack_a(g, row, end - row, 0, g.k, packed_a);
        for (int64_t q = q0; q < q1; ++q)
          gemm_one(g, 0, g.k, tiles, t, q * kPanel, packed_a, packed_b + (q - q0) * kDepth * kPanel);
      }
    }
  }
}

/// Blocks of row tiles by blocks of depth: as many of A as the second-level cache holds are packed between two
/// barriers.
inline void gemm_deep(const Gemm& g, int64_t tiles, int64_t panels, int64_t threads) {
  const int64_t group = smaller(kPanelsPerGroup, (panels + threads - 1) / threads);
  const int64_t groups = (panels + group - 1) / group, block = smaller(tiles, kTilesPerBlock);
  const int64_t depths = smaller(kTilesPerBlock / block, (g.k + kDepth - 1) / kDepth);
  const int64_t tile_size = kDepth * kPitch, deep = kDepth * depths;
  float* const packed_a =
      static_cast<float*>(scratch(8, sizeof(float) * static_cast<size_t>(block * depths * tile_size)));
#pragma omp parallel num_threads(static_cast<int>(smaller(threads, groups)))
  {
    float* const packed_b =
        static_cast<float*>(scratch(9, sizeof(float) * static_cast<size_t>(group * kDepth * kPanel)));
    for (int64_t d0 = 0; d0 < g.k; d0 += deep) {
      const int64_t d1 = smaller(d0 + deep, g.k), count = (d1 - d0 + kDepth - 1) / kDepth;
      for (int64_t t0 = 0; t0 < tiles; t0 += block) {
        const int64_t t1 = smaller(tiles, t0 + block);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < count * (t1 - t0); ++i) {
          const int64_t t = t0 + i % (t1 - t0), p0 = d0 + i / (t1 - t0) * kDepth;
          const int64_t row = tile_begin(g.m, tiles, t), end = tile_begin(g.m, tiles, t + 1);
          gemm_pack_a(g, row, end - row, p0, smaller(kDepth, d1 - p0), packed_a + i * tile_size);
        }
#pragma omp for schedule(static)
        for (int64_t j = 0; j < groups; ++j) {
          const int64_t col = j * group * kPanel, cols = smaller(group * kPanel, g.n - col);
          const float* a = packed_a;
          for (int64_t p0 = d0; p0 < d1; p0 += kDepth, a += (t1 - t0) * tile_size) {
            const int64_t depth = smaller(kDepth, d1 - p0);
            gemm_pack_b(g, col, cols, p0, depth, packed_b);
            for (int64_t q = 0; q < cols; q += kPanel)
              for (int64_t t = t0; t < t1; ++t)
                gemm_one(g, p0, depth, tiles, t, col + q, a + (t - t0) * tile_size, packed_b + q * kDepth);
          }
        }
      }
    }
  }
}

inline void gemm(const Gemm& g) {
  if (g.m <= 0 || g.n <= 0) return;
  const int64_t tiles = (g.m + kTileRows - 1) / kTileRows, panels = (g.n + kPanel - 1) / kPanel;
  const int64_t threads = g.m * g.n * g.k > (1 << 18) ? omp_get_max_threads() : 1;
  // both orders sum every element alike; the choice depends on the shape alone all the same
  if (g.k <= kDepth && g.m >= g.n / 4)
    gemm_shallow(g, tiles, panels, threads);
  else
    gemm_deep(g, tiles, panels, threads);
}

}  // namespace
}  // namespace medmpi::MEDMPI_ISA
