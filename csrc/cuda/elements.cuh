#pragma once
// Passes over arrays whose results depend on one element each: four values to a load where the arrays are aligned to
// 16 bytes, two loads under way per array and thread. What is computed is a struct F with
//   __device__ void operator()(const float (&in)[Inputs], float (&out)[Outputs]) const.
// An output may be an input's memory.
#include "cuda/launch.cuh"

namespace medmpi::cuda {

constexpr unsigned kThreads = 256;

inline bool aligned16(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

template <int N>
struct Inputs {
  const float* at[N];
};
template <int N>
struct Outputs {
  float* at[N];
};

/// The place of this thread in the grid, and the grid's size.
__device__ __forceinline__ int64_t first_of_grid() { return int64_t{blockIdx.x} * blockDim.x + threadIdx.x; }
__device__ __forceinline__ int64_t size_of_grid() { return int64_t{gridDim.x} * blockDim.x; }

__device__ __forceinline__ float component(const float4& v, int i) {
  return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

template <int In, int Out, typename F>
__device__ __forceinline__ void map_one(int64_t i, const Inputs<In>& x, const Outputs<Out>& y, const F& f) {
  float in[In], out[Out];
#pragma unroll
  for (int a = 0; a < In; ++a) in[a] = x.at[a][i];
  f(in, out);
#pragma unroll
  for (int a = 0; a < Out; ++a) y.at[a][i] = out[a];
}

template <int In, int Out, typename F>
__global__ void __launch_bounds__(kThreads) map_values(int64_t n, Inputs<In> x, Outputs<Out> y, F f) {
  for (int64_t i = first_of_grid(); i < n; i += size_of_grid()) map_one(i, x, y, f);
}

template <int In, int Out, typename F>
__global__ void __launch_bounds__(kThreads) map_fours(int64_t n, Inputs<In> x, Outputs<Out> y, F f) {
  constexpr int kLoads = 2;
  const int64_t fours = n / 4;
  for (int64_t base = int64_t{blockIdx.x} * kLoads * kThreads; base < fours;
       base += int64_t{gridDim.x} * kLoads * kThreads) {
    float4 v[kLoads][In];
#pragma unroll
    for (int u = 0; u < kLoads; ++u) {
      const int64_t i = base + u * kThreads + threadIdx.x;
      if (i < fours)
#pragma unroll
        for (int a = 0; a < In; ++a) v[u][a] = reinterpret_cast<const float4*>(x.at[a])[i];
    }
#pragma unroll
    for (int u = 0; u < kLoads; ++u) {
      const int64_t i = base + u * kThreads + threadIdx.x;
      if (i >= fours) continue;
      float in[In], out[4][Out];
#pragma unroll
      for (int k = 0; k < 4; ++k) {
#pragma unroll
        for (int a = 0; a < In; ++a) in[a] = component(v[u][a], k);
        f(in, out[k]);
      }
#pragma unroll
      for (int a = 0; a < Out; ++a)
        reinterpret_cast<float4*>(y.at[a])[i] = make_float4(out[0][a], out[1][a], out[2][a], out[3][a]);
    }
  }
  const int64_t rest = fours * 4 + threadIdx.x;
  if (blockIdx.x == 0 && rest < n) map_one(rest, x, y, f);
}

/// y[i] = f(x[i]) for i < n.
template <int In, int Out, typename F>
void map(int64_t n, const Inputs<In>& x, const Outputs<Out>& y, const F& f) {
  if (n <= 0) return;
  bool aligned = n >= 4;
  for (const float* p : x.at) aligned = aligned && aligned16(p);
  for (const float* p : y.at) aligned = aligned && aligned16(p);
  if (aligned)
    launch(map_fours<In, Out, F>, blocks_for(n, 8 * kThreads), kThreads, 0, n, x, y, f);
  else
    launch(map_values<In, Out, F>, blocks_for(n, kThreads), kThreads, 0, n, x, y, f);
}

}  // namespace medmpi::cuda
