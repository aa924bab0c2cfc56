#pragma once
// What launch.cuh needs to start kernels on the CPU.
#include <tuple>

#include "cuda/emulate/cuda_runtime.h"
#include "cuda/memory.h"

#define SHARED_BYTES(name) unsigned char* const name = static_cast<unsigned char*>(::medmpi::emulate::dynamic_shared())

namespace medmpi::emulate {

template <typename... Parameters, typename... Held>
void start(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, const std::tuple<Held...>& held) {
  const auto stream = static_cast<cudaStream_t>(cuda::current_stream());
  if (shared_bytes > 48 * 1024) allow_shared(reinterpret_cast<const void*>(kernel), shared_bytes);
  std::apply([&](const Held&... a) { launch(kernel, grid, block, shared_bytes, stream, a...); }, held);
}

}  // namespace medmpi::emulate
