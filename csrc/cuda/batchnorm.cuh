#pragma once
// What the passes of batch normalisation share: how rows are divided among blocks, and the map that they apply.
#include "cuda/rows.cuh"

namespace medmpi::cuda {

constexpr int64_t kReduceValues = 1 << 14, kReduceChunks = 512;
constexpr int64_t kApplyChunks = 65535;

/// Values of a block that applies: large blocks where there is work for all, because each thread sets up its channels.
inline int64_t apply_values(int64_t n) { return n > int64_t{1} << 23 ? 1 << 14 : 1 << 13; }

/// The rows of this block's chunk for this thread: first, end, step.
struct RowRange {
  int64_t first, end, step;
};
__device__ __forceinline__ RowRange rows_of(const RowTiles& t, int64_t chunk) {
  const int64_t begin = chunk * t.rows, end = begin + t.rows;
  return {begin + t.pass_row(), end < t.m ? end : t.m, t.rows_per_pass};
}

/// Chunks i = row, row + kMergeRows, ... are merged by one thread, the threads of a channel in pairs.
constexpr int kMergeChannels = 8, kMergeRows = static_cast<int>(kThreads) / kMergeChannels;

inline double* partials(const RowTiles& t) {
  return static_cast<double*>(device_scratch(0, static_cast<size_t>(t.chunks * 2 * t.c) * sizeof(double)));
}
inline dim3 grid_of(const RowTiles& t) { return {static_cast<unsigned>(t.tiles), static_cast<unsigned>(t.chunks), 1}; }
inline unsigned merge_blocks(int64_t c) { return static_cast<unsigned>((c + kMergeChannels - 1) / kMergeChannels); }

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

bool batchnorm_backward_reduce(int64_t m, int64_t c, const float* dy, const float* x, const float* y,
                               const float* gamma, const float* beta, const double* mean, const double* rstd,
                               double* sum_dy, double* sum_dy_xhat);
void batchnorm_backward_apply(int64_t m, int64_t c, const float* dy, const float* x, const float* y, const float* gamma,
                              const float* beta, const double* mean, const double* rstd, const double* sum_dy,
                              const double* sum_dy_xhat, double count, float* dresidual, float* dx);

}  // namespace medmpi::cuda
