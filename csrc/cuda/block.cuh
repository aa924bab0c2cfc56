#pragma once
// What the threads of a block do together, in an order fixed by their places.
#include "cuda/launch.cuh"

#ifdef MEDMPI_CUDA_EMULATED
/// A variable in shared memory; emulated, it is NaN before each block and watched.
#define SHARED_ARRAY(type, name, extents) \
  static char name##_key;                 \
  auto& name =                            \
      *static_cast<type(*) extents>(::medmpi::emulate::shared_variable(&name##_key, sizeof(type extents), #name))
#else
#define SHARED_ARRAY(type, name, extents) __shared__ type name extents
#endif

namespace medmpi::cuda {

constexpr unsigned kWholeWarp = 0xffffffffu;

/// The sum over a warp, in every lane.
template <typename T>
__device__ __forceinline__ T warp_sum(T v) {
#pragma unroll
  for (int step = 16; step; step /= 2) v += __shfl_xor_sync(kWholeWarp, v, step);
  return v;
}
template <typename T>
__device__ __forceinline__ T warp_max(T v) {
#pragma unroll
  for (int step = 16; step; step /= 2) {
    const T other = __shfl_xor_sync(kWholeWarp, v, step);
    v = v < other ? other : v;
  }
  return v;
}

/// The sum over a block of whole warps, in every thread. All threads of the block have to call it.
template <typename T>
__device__ __forceinline__ T block_sum(T v) {
  SHARED_ARRAY(T, part, [32]);
  v = warp_sum(v);
  __syncthreads();  // part may still be read from the call before
  if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = v;
  __syncthreads();
  T sum = part[0];
  for (unsigned i = 1; i < blockDim.x / 32; ++i) sum += part[i];
  return sum;
}

/// *to = factor times the sum of `count` partial sums: one block, each thread every so many, then the threads in order.
template <typename T>
__global__ void __launch_bounds__(256) sum_partials(int64_t count, const T* part, double factor, double* to) {
  T sum = 0;
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) sum += part[i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) *to = static_cast<double>(sum) * factor;
}

}  // namespace medmpi::cuda
