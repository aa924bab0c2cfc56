// Batch normalisation, each pass bound by memory. Sums over rows: chunks of rows fixed by the shape, one block each,
// then merged in a fixed order in float64 (Chan, Golub, LeVeque 1979). Statistics are float64 from the first value on,
// so that they agree to the last digits however a batch is divided among ranks. Passes over what was just read run from
// its end to its beginning: the second level cache still holds the end.
//
// Scratch: slot 0, the chunks' partial results.
#include "cuda/rows.cuh"
#include "ops/batchnorm.h"

namespace medmpi::cuda {
namespace {

constexpr int64_t kReduceValues = 1 << 14, kReduceChunks = 512;
constexpr int64_t kApplyChunks = 65535;

/// Values of a block that applies: large blocks where there is work for all, because each thread sets up its channels.
int64_t apply_values(int64_t n) { return n > int64_t{1} << 23 ? 1 << 14 : 1 << 13; }

/// The rows of this block's chunk for this thread: first, end, step.
struct RowRange {
  int64_t first, end, step;
};
__device__ __forceinline__ RowRange rows_of(const RowTiles& t, int64_t chunk) {
  const int64_t begin = chunk * t.rows, end = begin + t.rows;
  return {begin + t.pass_row(), end < t.m ? end : t.m, t.rows_per_pass};
}

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

/// Chunks i = row, row + kMergeRows, ... are merged by one thread, the threads of a channel in pairs.
constexpr int kMergeChannels = 8, kMergeRows = static_cast<int>(kThreads) / kMergeChannels;

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

double* partials(const RowTiles& t) {
  return static_cast<double*>(device_scratch(0, static_cast<size_t>(t.chunks * 2 * t.c) * sizeof(double)));
}
dim3 grid_of(const RowTiles& t) { return {static_cast<unsigned>(t.tiles), static_cast<unsigned>(t.chunks), 1}; }
unsigned merge_blocks(int64_t c) { return static_cast<unsigned>((c + kMergeChannels - 1) / kMergeChannels); }

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

/// (x - shift) scale + add; the mean's rounding to float32 is put right in `add`.
template <int Wide>
struct Affine {
  float shift[Wide], scale[Wide], add[Wide];

  __device__ __forceinline__ void set(int64_t j, const float* gamma, const float* beta, const double* mean,
                                      const double* rstd) {
#pragma unroll
    for (int k = 0; k < Wide; ++k) {
      const double a = rstd[j + k] * static_cast<double>(gamma[j + k]);
      shift[k] = static_cast<float>(mean[j + k]);
      scale[k] = static_cast<float>(a);
      add[k] = static_cast<float>(static_cast<double>(beta[j + k]) + (static_cast<double>(shift[k]) - mean[j + k]) * a);
    }
  }
  /// The same bits wherever it is computed: backward asks for its sign.
  __device__ __forceinline__ float at(int k, float x) const { return __fmaf_rn(x - shift[k], scale[k], add[k]); }
};

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

// --- backward -------------------------------------------------------------------------------------------------------

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

bool backward_reduce(int64_t m, int64_t c, const float* dy, const float* x, const float* y, const float* gamma,
                     const float* beta, const double* mean, const double* rstd, double* sum_dy, double* sum_dy_xhat) {
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

void backward_apply(int64_t m, int64_t c, const float* dy, const float* x, const float* y, const float* gamma,
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
const BatchNormOps batchnorm = {channel_statistics, apply, backward_reduce, backward_apply,
                                deviation,          track, add_sums,        from_running};

}  // namespace medmpi::cuda
