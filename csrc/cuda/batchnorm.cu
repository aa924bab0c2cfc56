// Batch normalisation, each pass bound by memory. Sums over rows: chunks of rows fixed by the shape, one block each,
// then merged in a fixed order in float64 (Chan, Golub, LeVeque 1979). Statistics are float64 from the first value on,
// so that they agree to the last digits however a batch is divided among ranks. Passes over what was just read run from
// its end to its beginning: the second level cache still holds the end.
//
// Scratch: slot 0, the chunks' partial results.
#include "cuda/batchnorm.cuh"
#include "ops/batchnorm.h"

namespace medmpi::cuda {
namespace {

// --- statistics -----------------------------------------------------------------------------------------------------

/// part[chunk][2][c]: mean and sum of squared deviations of the chunk.
template <int Wide>
__global__ void __launch_bounds__(kThreads) chunk_moments(RowTiles t, const float* x, double* part) {
  const int64_t j = t.channel<Wide>();
  const bool inside = j < t.c;
  const RowRange r = rows_of(t, blockIdx.y);
  double s[Wide] = {}, q[Wide] = {};
  if (inside) {
    int64_t i = r.first;
    for (; i + 3 * r.step < r.end; i += 4 * r.step) {
      Pack<Wide> v[4];
#pragma unroll
      for (int u = 0; u < 4; ++u) v[u] = load_pack<Wide>(x + (i + u * r.step) * t.c + j);
#pragma unroll
      for (int u = 0; u < 4; ++u)
#pragma unroll
        for (int k = 0; k < Wide; ++k) {
          const double d = static_cast<double>(v[u].v[k]);
          s[k] += d;
          q[k] += d * d;
        }
    }
    for (; i < r.end; i += r.step) {
      const Pack<Wide> v = load_pack<Wide>(x + i * t.c + j);
#pragma unroll
      for (int k = 0; k < Wide; ++k) {
        const double d = static_cast<double>(v.v[k]);
        s[k] += d;
        q[k] += d * d;
      }
    }
  }
  sum_over_rows<Wide>(t, s);
  sum_over_rows<Wide>(t, q);
  if (!inside || t.pass_row()) return;
  const int64_t begin = blockIdx.y * t.rows;
  const auto rows = static_cast<double>(begin + t.rows < t.m ? t.rows : t.m - begin);
  double* mine = part + blockIdx.y * 2 * t.c + j;
#pragma unroll
  for (int k = 0; k < Wide; ++k) {
    const double mean = s[k] / rows, m2 = q[k] - s[k] * mean;
    mine[k] = mean;
    mine[t.c + k] = m2 < 0.0 ? 0.0 : m2;
  }
}

struct Moments {
  double count, mean, m2;
};
__device__ __forceinline__ Moments merged(const Moments& a, const Moments& b) {
  if (b.count == 0.0) return a;
  const double count = a.count + b.count, share = b.count / count, delta = b.mean - a.mean;
  return {count, a.mean + delta * share, a.m2 + b.m2 + delta * delta * a.count * share};
}

__global__ void __launch_bounds__(kThreads) merge_moments(RowTiles t, const double* part, double* mean, double* m2) {
  SHARED_ARRAY(Moments, all, [kThreads]);
  const int row = static_cast<int>(threadIdx.x) / kMergeChannels;
  const int64_t j = int64_t{blockIdx.x} * kMergeChannels + threadIdx.x % kMergeChannels;
  Moments sum{0.0, 0.0, 0.0};
  if (j < t.c)
    for (int64_t i = row; i < t.chunks; i += kMergeRows) {
      const int64_t begin = i * t.rows;
      const auto rows = static_cast<double>(begin + t.rows < t.m ? t.rows : t.m - begin);
      sum = merged(sum, {rows, part[i * 2 * t.c + j], part[(i * 2 + 1) * t.c + j]});
    }
  all[threadIdx.x] = sum;
  for (int rows = kMergeRows / 2; rows; rows /= 2) {
    __syncthreads();
    if (row < rows) all[threadIdx.x] = merged(all[threadIdx.x], all[threadIdx.x + rows * kMergeChannels]);
  }
  if (row == 0 && j < t.c) {
    mean[j] = all[threadIdx.x].mean;
    m2[j] = all[threadIdx.x].m2;
  }
}

bool channel_statistics(int64_t m, int64_t c, const float* x, double* mean, double* m2) {
  if (c <= 0) return true;
  const bool wide = wide_rows(c, x);
  const RowTiles t = tile_rows(m, c, wide ? 4 : 1, kReduceValues, kReduceChunks);
  double* part = partials(t);
  launch(wide ? chunk_moments<4> : chunk_moments<1>, grid_of(t), kThreads, 0, t, x, part);
  launch(merge_moments, merge_blocks(c), kThreads, 0, t, part, mean, m2);
  return true;
}

// --- application ----------------------------------------------------------------------------------------------------

template <int Wide, bool kResidual>
__global__ void __launch_bounds__(kThreads)
    apply_affine(RowTiles t, const float* x, const float* gamma, const float* beta, const double* mean,
                 const double* rstd, const float* residual, bool relu, float* y) {
  const int64_t j = t.channel<Wide>();
  if (j >= t.c) return;
  Affine<Wide> f;
  f.set(j, gamma, beta, mean, rstd);
  const RowRange r = rows_of(t, t.chunks - 1 - blockIdx.y);
  constexpr int kLoads = kResidual ? 2 : 4;  // under way at once; y may be x, so that the compiler may not reorder
  for (int64_t i = r.first; i < r.end; i += kLoads * r.step) {
    Pack<Wide> v[kLoads], add[kLoads];
#pragma unroll
    for (int u = 0; u < kLoads; ++u) {
      const int64_t row = i + u * r.step;
      if (row >= r.end) continue;
      v[u] = load_pack<Wide>(x + row * t.c + j);
      if constexpr (kResidual) add[u] = load_pack<Wide>(residual + row * t.c + j);
    }
#pragma unroll
    for (int u = 0; u < kLoads; ++u) {
      const int64_t row = i + u * r.step;
      if (row >= r.end) continue;
#pragma unroll
      for (int k = 0; k < Wide; ++k) {
        float value = f.at(k, v[u].v[k]);
        if constexpr (kResidual) value += add[u].v[k];
        v[u].v[k] = relu && value < 0.0f ? 0.0f : value;
      }
      store_pack<Wide>(y + row * t.c + j, v[u]);
    }
  }
}

void apply(int64_t m, int64_t c, const float* x, const float* gamma, const float* beta, const double* mean,
           const double* rstd, const float* residual, bool relu, float* y) {
  if (m <= 0 || c <= 0) return;
  const bool wide = wide_rows(c, x, residual, y);
  const RowTiles t = tile_rows(m, c, wide ? 4 : 1, apply_values(m * c), kApplyChunks);
  const auto kernel = wide ? (residual ? apply_affine<4, true> : apply_affine<4, false>)
                           : (residual ? apply_affine<1, true> : apply_affine<1, false>);
  launch(kernel, grid_of(t), kThreads, 0, t, x, gamma, beta, mean, rstd, residual, relu, y);
}

// --- arithmetic on channels -----------------------------------------------------------------------------------------

__global__ void __launch_bounds__(kThreads)
    find_deviation(int64_t c, double count, double eps, const double* m2, double* rstd) {
  for (int64_t j = first_of_grid(); j < c; j += size_of_grid())
    rstd[j] = 1.0 / sqrt((count > 0 ? m2[j] / count : 0.0) + eps);
}
void deviation(int64_t c, double count, double eps, const double* m2, double* rstd) {
  if (c > 0) launch(find_deviation, blocks_for(c, kThreads), kThreads, 0, c, count, eps, m2, rstd);
}

__device__ __forceinline__ void move_towards(double value, double rate, float& running) {
  running += static_cast<float>(rate * (value - static_cast<double>(running)));
}
__global__ void __launch_bounds__(kThreads) track_channels(int64_t c, double count, double rate, const double* mean,
                                                           const double* m2, float* running_mean, float* running_var) {
  for (int64_t j = first_of_grid(); j < c; j += size_of_grid()) {
    move_towards(mean[j], rate, running_mean[j]);
    move_towards(m2[j] / (count - 1), rate, running_var[j]);
  }
}
void track(int64_t c, double count, double rate, const double* mean, const double* m2, float* running_mean,
           float* running_var) {
  if (c > 0)
    launch(track_channels, blocks_for(c, kThreads), kThreads, 0, c, count, rate, mean, m2, running_mean, running_var);
}

__global__ void __launch_bounds__(kThreads) add_channels(int64_t c, const double* sums, float* y) {
  for (int64_t j = first_of_grid(); j < c; j += size_of_grid()) y[j] += static_cast<float>(sums[j]);
}
void add_sums(int64_t c, const double* sums, float* y) {
  if (c > 0) launch(add_channels, blocks_for(c, kThreads), kThreads, 0, c, sums, y);
}

__global__ void __launch_bounds__(kThreads) widen_running(int64_t c, double eps, const float* running_mean,
                                                          const float* running_var, double* mean, double* rstd) {
  for (int64_t j = first_of_grid(); j < c; j += size_of_grid()) {
    mean[j] = running_mean[j];
    rstd[j] = 1.0 / sqrt(running_var[j] + eps);
  }
}
void from_running(int64_t c, double eps, const float* running_mean, const float* running_var, double* mean,
                  double* rstd) {
  if (c > 0) launch(widen_running, blocks_for(c, kThreads), kThreads, 0, c, eps, running_mean, running_var, mean, rstd);
}

}  // namespace

extern const BatchNormOps batchnorm;
const BatchNormOps batchnorm = {
    channel_statistics, apply,       batchnorm_backward_reduce, batchnorm_backward_apply, deviation, track,
    add_sums,           from_running};

}  // namespace medmpi::cuda
