// Sums of the parts that a product's depth was cut into: a thread for each four values, so that a few tiles of many
// parts are read by all of the device.
#include "cuda/launch.cuh"
#include "cuda/parts.cuh"

namespace medmpi::cuda {
namespace {

constexpr int kThreads = 128;

/// blockIdx: x piece of a tile, y tile.
__global__ void __launch_bounds__(kThreads) add_parts_kernel(float* parts, int splits, int64_t size) {
  const int64_t at = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * 4;
  if (at >= size) return;
  float* first = parts + blockIdx.y * splits * size + at;
  float4 sum = *reinterpret_cast<const float4*>(first);
#pragma unroll 8
  for (int i = 1; i < splits; ++i) {
    const float4 more = *reinterpret_cast<const float4*>(first + i * size);
    sum = make_float4(sum.x + more.x, sum.y + more.y, sum.z + more.z, sum.w + more.w);
  }
  *reinterpret_cast<float4*>(first) = sum;
}

}  // namespace

void add_parts(float* parts, int64_t tiles, int splits, int64_t size) {
  const dim3 grid(blocks_for(size, kThreads * 4), static_cast<unsigned>(tiles));
  launch(add_parts_kernel, grid, kThreads, 0, parts, splits, size);
}

}  // namespace medmpi::cuda
