// The backward passes of batch normalisation; see batchnorm.cu.
//
// Scratch: slot 0, the chunks' partial results.
#include "cuda/batchnorm.cuh"
#include "ops/batchnorm.h"

namespace medmpi::cuda {
namespace {

/// How a ReLU masks the gradient: not at all, by its saved output, by its output computed again.
enum class Mask { kNone, kSaved, kAgain };

template <Mask kMask, int Wide>
__device__ __forceinline__ Pack<Wide> masked(const Pack<Wide>& dy, const Pack<Wide>& x, const float* y,
                                             const Affine<Wide>& f) {
  Pack<Wide> g = dy;
  if constexpr (kMask == Mask::kSaved) {
    const Pack<Wide> saved = load_pack<Wide>(y);
#pragma unroll
    for (int k = 0; k < Wide; ++k) g.v[k] = saved.v[k] > 0.0f ? dy.v[k] : 0.0f;
  }
  if constexpr (kMask == Mask::kAgain)
#pragma unroll
    for (int k = 0; k < Wide; ++k) g.v[k] = f.at(k, x.v[k]) > 0.0f ? dy.v[k] : 0.0f;
  return g;
}

struct Given {
  const float *dy, *x, *y, *gamma, *beta;
  const double *mean, *rstd;
};

/// part[chunk][2][c]: sums of masked dy and of masked dy (x - shift), float32 within a thread.
template <Mask kMask, int Wide>
__global__ void __launch_bounds__(kThreads) chunk_gradients(RowTiles t, Given a, double* part) {
  const int64_t j = t.channel<Wide>();
  const bool inside = j < t.c;
  const RowRange r = rows_of(t, blockIdx.y);
  float s[Wide] = {}, q[Wide] = {};
  if (inside) {
    Affine<Wide> f;
    if constexpr (kMask == Mask::kAgain) {
      f.set(j, a.gamma, a.beta, a.mean, a.rstd);
    } else {
#pragma unroll
      for (int k = 0; k < Wide; ++k) f.shift[k] = static_cast<float>(a.mean[j + k]);
    }
#pragma unroll 4
    for (int64_t i = r.first; i < r.end; i += r.step) {
      const int64_t at = i * t.c + j;
      const Pack<Wide> x = load_pack<Wide>(a.x + at), dy = load_pack<Wide>(a.dy + at);
      const Pack<Wide> g = masked<kMask, Wide>(dy, x, a.y + at, f);
#pragma unroll
      for (int k = 0; k < Wide; ++k) {
        s[k] += g.v[k];
        q[k] += g.v[k] * (x.v[k] - f.shift[k]);
      }
    }
  }
  double sums[Wide], products[Wide];
#pragma unroll
  for (int k = 0; k < Wide; ++k) {
    sums[k] = static_cast<double>(s[k]);
    products[k] = static_cast<double>(q[k]);
  }
  sum_over_rows<Wide>(t, sums);
  sum_over_rows<Wide>(t, products);
  if (!inside || t.pass_row()) return;
  double* mine = part + blockIdx.y * 2 * t.c + j;
#pragma unroll
  for (int k = 0; k < Wide; ++k) {
    mine[k] = sums[k];
    mine[t.c + k] = products[k];
  }
}

struct TwoSums {
  double dy, dy_x;
};

__global__ void __launch_bounds__(kThreads) merge_gradients(RowTiles t, const double* part, const double* mean,
                                                            const double* rstd, double* sum_dy, double* sum_dy_xhat) {
  SHARED_ARRAY(TwoSums, all, [kThreads]);
  const int row = static_cast<int>(threadIdx.x) / kMergeChannels;
  const int64_t j = int64_t{blockIdx.x} * kMergeChannels + threadIdx.x % kMergeChannels;
  TwoSums sum{0.0, 0.0};
  if (j < t.c)
    for (int64_t i = row; i < t.chunks; i += kMergeRows) {
      sum.dy += part[i * 2 * t.c + j];
      sum.dy_x += part[(i * 2 + 1) * t.c + j];
    }
  all[threadIdx.x] = sum;
  for (int rows = kMergeRows / 2; rows; rows /= 2) {
    __syncthreads();
    if (row < rows) {
      all[threadIdx.x].dy += all[threadIdx.x + rows * kMergeChannels].dy;
      all[threadIdx.x].dy_x += all[threadIdx.x + rows * kMergeChannels].dy_x;
    }
  }
  if (row || j >= t.c) return;
  sum = all[threadIdx.x];
  const double rounding = static_cast<double>(static_cast<float>(mean[j])) - mean[j];
  sum_dy[j] = sum.dy;
  sum_dy_xhat[j] = (sum.dy_x + sum.dy * rounding) * rstd[j];
}

}  // namespace

bool batchnorm_backward_reduce(int64_t m, int64_t c, const float* dy, const float* x, const float* y,
                               const float* gamma, const float* beta, const double* mean, const double* rstd,
                               double* sum_dy, double* sum_dy_xhat) {
  if (c <= 0) return true;
  const bool wide = wide_rows(c, dy, x, y);
  const RowTiles t = tile_rows(m, c, wide ? 4 : 1, kReduceValues, kReduceChunks);
  double* part = partials(t);
  const Given a{dy, x, y, gamma, beta, mean, rstd};
  const auto kernel = y      ? (wide ? chunk_gradients<Mask::kSaved, 4> : chunk_gradients<Mask::kSaved, 1>)
                      : beta ? (wide ? chunk_gradients<Mask::kAgain, 4> : chunk_gradients<Mask::kAgain, 1>)
                             : (wide ? chunk_gradients<Mask::kNone, 4> : chunk_gradients<Mask::kNone, 1>);
  launch(kernel, grid_of(t), kThreads, 0, t, a, part);
  launch(merge_gradients, merge_blocks(c), kThreads, 0, t, part, mean, rstd, sum_dy, sum_dy_xhat);
  return true;
}

namespace {

/// dx = scale dy + slope (x - shift) + add.
template <Mask kMask, int Wide>
__global__ void __launch_bounds__(kThreads)
    apply_gradient(RowTiles t, Given a, const double* sum_dy, const double* sum_dy_xhat, double count, float* dresidual,
                   float* dx) {
  const int64_t j = t.channel<Wide>();
  if (j >= t.c) return;
  Affine<Wide> f;
  if constexpr (kMask == Mask::kAgain) f.set(j, a.gamma, a.beta, a.mean, a.rstd);
  float scale[Wide], slope[Wide], add[Wide];
#pragma unroll
  for (int k = 0; k < Wide; ++k) {
    const double mean = a.mean[j + k], rstd = a.rstd[j + k];
    const double p = static_cast<double>(a.gamma[j + k]) * rstd, q = -p * rstd * sum_dy_xhat[j + k] / count;
    f.shift[k] = static_cast<float>(mean);
    scale[k] = static_cast<float>(p);
    slope[k] = static_cast<float>(q);
    add[k] = static_cast<float>(q * (static_cast<double>(f.shift[k]) - mean) - p * sum_dy[j + k] / count);
  }
  const RowRange r = rows_of(t, t.chunks - 1 - blockIdx.y);
  constexpr int kLoads = 2;
  for (int64_t i = r.first; i < r.end; i += kLoads * r.step) {
    Pack<Wide> x[kLoads], g[kLoads];
#pragma unroll
    for (int u = 0; u < kLoads; ++u) {
      const int64_t row = i + u * r.step, at = row * t.c + j;
      if (row >= r.end) continue;
      x[u] = load_pack<Wide>(a.x + at);
      g[u] = masked<kMask, Wide>(load_pack<Wide>(a.dy + at), x[u], a.y + at, f);
    }
#pragma unroll
    for (int u = 0; u < kLoads; ++u) {
      const int64_t row = i + u * r.step, at = row * t.c + j;
      if (row >= r.end) continue;
      if (dresidual) store_pack<Wide>(dresidual + at, g[u]);
      Pack<Wide> out;
#pragma unroll
      for (int k = 0; k < Wide; ++k) out.v[k] = scale[k] * g[u].v[k] + (slope[k] * (x[u].v[k] - f.shift[k]) + add[k]);
      store_pack<Wide>(dx + at, out);
    }
  }
}

}  // namespace

void batchnorm_backward_apply(int64_t m, int64_t c, const float* dy, const float* x, const float* y, const float* gamma,
                              const float* beta, const double* mean, const double* rstd, const double* sum_dy,
                              const double* sum_dy_xhat, double count, float* dresidual, float* dx) {
  if (m <= 0 || c <= 0) return;
  const bool wide = wide_rows(c, dy, x, y, dresidual, dx);
  const RowTiles t = tile_rows(m, c, wide ? 4 : 1, apply_values(m * c), kApplyChunks);
  const Given a{dy, x, y, gamma, beta, mean, rstd};
  const auto kernel = y      ? (wide ? apply_gradient<Mask::kSaved, 4> : apply_gradient<Mask::kSaved, 1>)
                      : beta ? (wide ? apply_gradient<Mask::kAgain, 4> : apply_gradient<Mask::kAgain, 1>)
                             : (wide ? apply_gradient<Mask::kNone, 4> : apply_gradient<Mask::kNone, 1>);
  launch(kernel, grid_of(t), kThreads, 0, t, a, sum_dy, sum_dy_xhat, count, dresidual, dx);
}

}  // namespace medmpi::cuda
