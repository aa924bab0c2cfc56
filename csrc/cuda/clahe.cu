// CLAHE: a table of new grey levels for each tile from its clipped histogram, one block a tile; a pixel blends the
// results of the four tiles around it. Operations are those of the CPU, never contracted to fused multiply-adds: every
// result has the same bits as OpenCV's.
//
// Scratch: slot 0 tables of all tiles, slot 1 histograms of 65536 levels.
#include "cuda/block.cuh"
#include "cuda/elements.cuh"
#include "ops/clahe.h"
#include "ops/filter.h"

namespace medmpi::cuda {
namespace {

template <typename T>
constexpr int kLevels = sizeof(T) == 1 ? 256 : 65536;

/// Counts of one tile's levels, `counts` being zero.
template <typename T>
__device__ __forceinline__ void count_tile(const ClaheShape& s, const ClaheGrid& g, const T* x, int64_t row,
                                           int64_t column, int* counts) {
  const auto area = g.tile_h * g.tile_w;
  for (int64_t p = threadIdx.x; p < area; p += kThreads) {
    const int64_t i = border_source(Border::mirror, row * g.tile_h + p / g.tile_w, s.h);
    const int64_t j = border_source(Border::mirror, column * g.tile_w + p % g.tile_w, s.w);
    atomicAdd(&counts[x[i * s.w + j]], 1);
  }
}

/// Cuts the counts at the limit and spreads what was cut evenly over all levels.
template <int Levels>
__device__ __forceinline__ void clip(double clip_limit, int64_t area, int* counts) {
  const double wanted = clip_limit * static_cast<double>(area) / Levels;
  const int limit = wanted < 1                           ? 1
                    : wanted < static_cast<double>(area) ? static_cast<int>(wanted)
                                                         : static_cast<int>(area);
  int cut = 0;
  for (int v = static_cast<int>(threadIdx.x); v < Levels; v += kThreads) {
    const int over = counts[v] > limit ? counts[v] - limit : 0;
    cut += over;
    counts[v] -= over;
  }
  cut = block_sum(cut);
  const int share = cut / Levels, rest = cut - share * Levels, step = rest && Levels / rest > 1 ? Levels / rest : 1;
  for (int v = static_cast<int>(threadIdx.x); v < Levels; v += kThreads)
    counts[v] += share + (v % step == 0 && v / step < rest ? 1 : 0);
  __syncthreads();
}

/// The new level of each level: its share of the tile's pixels at or below it.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    fill_tables(ClaheShape s, ClaheGrid g, const T* x, int* histograms, T* tables) {
  constexpr int n = kLevels<T>, kRun = n / static_cast<int>(kThreads);
  SHARED_ARRAY(int, small, [256]);
  SHARED_ARRAY(int, below, [kThreads]);
  const int64_t t = blockIdx.x, tiles = s.rows * s.columns, image = t / tiles, tile = t % tiles;
  int* counts = sizeof(T) == 1 ? small : histograms + t * n;
  if (sizeof(T) == 1) small[threadIdx.x] = 0;
  __syncthreads();
  count_tile(s, g, x + image * s.h * s.w, tile / s.columns, tile % s.columns, counts);
  __syncthreads();
  const int64_t area = g.tile_h * g.tile_w;
  if (s.clip_limit > 0) clip<n>(s.clip_limit, area, counts);
  // each thread sums a run of levels, then all runs below its own
  const int first = static_cast<int>(threadIdx.x) * kRun;
  int sum = 0;
  for (int v = first; v < first + kRun; ++v) sum += counts[v];
  below[threadIdx.x] = sum;
  for (unsigned step = 1; step < kThreads; step *= 2) {
    __syncthreads();
    const int add = threadIdx.x >= step ? below[threadIdx.x - step] : 0;
    __syncthreads();
    below[threadIdx.x] += add;
  }
  sum = below[threadIdx.x] - sum;
  const float scale = __fdiv_rn(static_cast<float>(n - 1), static_cast<float>(area));
  for (int v = first; v < first + kRun; ++v) {
    sum += counts[v];
    const int level = __float2int_rn(__fmul_rn(static_cast<float>(sum), scale));
    tables[t * n + v] = static_cast<T>(level < n ? level : n - 1);
  }
}

/// The two tiles a pixel lies between, and how far it is from the first.
struct Between {
  int64_t low, high;
  float weight;
};
__device__ __forceinline__ Between between(int64_t i, int64_t tile, int64_t tiles) {
  const float inverse = __fdiv_rn(1.0f, static_cast<float>(tile));
  const float at = __fsub_rn(__fmul_rn(static_cast<float>(i), inverse), 0.5f);
  const int64_t low = at < 0 ? -1 : static_cast<int64_t>(at);
  return {low < 0 ? 0 : low, low + 1 < tiles ? low + 1 : tiles - 1, at - static_cast<float>(low)};
}

__device__ __forceinline__ float mix(float a, float b, float weight) {
  return __fadd_rn(__fmul_rn(a, 1.0f - weight), __fmul_rn(b, weight));
}

template <typename T>
__global__ void __launch_bounds__(kThreads) blend_pixels(ClaheShape s, ClaheGrid g, const T* x, const T* tables, T* y) {
  const int64_t size = s.h * s.w;
  for (int64_t at = first_of_grid(); at < s.n * size; at += size_of_grid()) {
    const int64_t image = at / size, i = (at - image * size) / s.w, j = at - image * size - i * s.w;
    const Between v = between(i, g.tile_h, s.rows), u = between(j, g.tile_w, s.columns);
    const T* table = tables + image * s.rows * s.columns * kLevels<T> + x[at];
    const auto level = [&](int64_t row, int64_t column) {
      return static_cast<float>(table[(row * s.columns + column) * kLevels<T>]);
    };
    const float top = mix(level(v.low, u.low), level(v.low, u.high), u.weight);
    const float bottom = mix(level(v.high, u.low), level(v.high, u.high), u.weight);
    y[at] = static_cast<T>(__float2int_rn(mix(top, bottom, v.weight)));
  }
}

template <typename T>
void equalize(const ClaheShape& s, const T* x, T* y) {
  if (s.n * s.h * s.w <= 0) return;
  const ClaheGrid g(s);
  const auto cells = static_cast<size_t>(s.rows * s.columns * kLevels<T>);
  // as many images at a time as 256 MB of tables and histograms hold
  const size_t bytes = cells * (sizeof(T) == 1 ? sizeof(T) : sizeof(T) + sizeof(int));
  const auto fit = static_cast<int64_t>(std::max<size_t>(1, (size_t{256} << 20) / bytes));
  ClaheShape part = s;
  for (int64_t first = 0; first < s.n; first += part.n) {
    part.n = std::min(fit, s.n - first);
    const size_t all = static_cast<size_t>(part.n) * cells;
    auto* tables = static_cast<T*>(device_scratch(0, all * sizeof(T)));
    int* histograms = nullptr;
    if (sizeof(T) > 1) {
      histograms = static_cast<int*>(device_scratch(1, all * sizeof(int)));
      set_zero(histograms, all * sizeof(int));
    }
    const int64_t at = first * s.h * s.w;
    launch(fill_tables<T>, static_cast<unsigned>(part.n * s.rows * s.columns), kThreads, 0, part, g, x + at, histograms,
           tables);
    launch(blend_pixels<T>, blocks_for(part.n * s.h * s.w, kThreads), kThreads, 0, part, g, x + at, tables, y + at);
  }
}

}  // namespace

extern const ClaheOps clahe;
const ClaheOps clahe = {equalize<uint8_t>, equalize<uint16_t>};

}  // namespace medmpi::cuda
