#pragma once
// How a kernel of this folder is started, and the rules that all of them keep.
//
// - A kernel is started by launch(kernel, grid, block, shared_bytes, arguments...), never by <<<>>>: the same sources
//   are compiled by a host compiler too, against emulate/, where threads are fibers. So: no inline PTX outside mma.cuh,
//   no cooperative groups, no cub or thrust. __shfl_*_sync, __syncwarp, __syncthreads and integer atomics are fine.
// - Dynamic shared memory is declared with SHARED_BYTES(name), aligned to 128 bytes.
// - Results do not vary: no atomics on floats; a reduction has a fixed partition by sizes (never by the device's number
//   of processors) and a second pass in order.
// - A table entry runs on the calling thread's stream and returns without waiting. The arrays it is given, and
//   `double* loss`, are device memory. Host memory are what it returns by value or through LabelCheck*, low and high
//   (it reads those back by copy_to_host, which waits), and small tables: Windows, taps, edges, widths and pointers of
//   CopyOps::join/cut, scale and shift of normalize (use device_constant), matrix and colour of warp (device_upload).
// - Temporary memory: device_scratch(slot, bytes), slots 0 to 15, each family from 0. Nothing is allocated otherwise.
// - Errors: check(call, "name") raises std::runtime_error. A function that returns bool returns true.
// - Indices are int64_t wherever an array may have 2^31 elements.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <tuple>
#include <utility>

#include "cuda/memory.h"

#ifdef MEDMPI_CUDA_EMULATED
#include "cuda/emulate/launch.h"  // SHARED_BYTES and start(kernel, grid, block, shared_bytes, stream, tuple)
#else
#define SHARED_BYTES(name) extern __shared__ __align__(128) unsigned char name[]
#endif

namespace medmpi::cuda {

/// Raises std::runtime_error "call: status" unless the status is cudaSuccess.
void check(cudaError_t status, const char* call);

inline cudaStream_t stream() { return static_cast<cudaStream_t>(current_stream()); }

inline float* device_scratch_floats(int slot, int64_t count) {
  return static_cast<float*>(device_scratch(slot, static_cast<size_t>(count) * sizeof(float)));
}

/// Blocks of `per_block` elements that cover n, at most `most`: kernels go on in steps of the whole grid.
inline unsigned blocks_for(int64_t n, int64_t per_block, int64_t most = int64_t{1} << 20) {
  return static_cast<unsigned>(std::max<int64_t>(1, std::min(most, (n + per_block - 1) / per_block)));
}

/// After each launch: its status and, with MEDMPI_SYNC=1, that of its run.
void after_launch();

#ifndef MEDMPI_CUDA_EMULATED
/// Lets a kernel use more than 48 KiB of dynamic shared memory.
void allow_shared(const void* kernel, size_t bytes);

template <typename Tuple, size_t... I>
void start(const void* kernel, dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t on, Tuple& arguments,
           std::index_sequence<I...>) {
  void* addresses[] = {static_cast<void*>(&std::get<I>(arguments))..., nullptr};
  check(cudaLaunchKernel(kernel, grid, block, addresses, shared_bytes, on), "cudaLaunchKernel");
}
#endif

/// Starts a kernel on the calling thread's stream. A grid with no blocks does nothing.
template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, Arguments&&... arguments) {
  static_assert(sizeof...(Parameters) == sizeof...(Arguments), "a kernel needs one argument for each parameter");
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  std::tuple<std::decay_t<Parameters>...> values(std::forward<Arguments>(arguments)...);
#ifdef MEDMPI_CUDA_EMULATED
  emulate::start(kernel, grid, block, shared_bytes, values);
#else
  const void* entry = reinterpret_cast<const void*>(kernel);
  if (shared_bytes > 48 * 1024) allow_shared(entry, shared_bytes);
  start(entry, grid, block, shared_bytes, stream(), values, std::index_sequence_for<Parameters...>{});
#endif
  after_launch();
}

}  // namespace medmpi::cuda
