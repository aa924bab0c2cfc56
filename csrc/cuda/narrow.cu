// Copies of float32 arrays in bf16.
#include "cuda/narrow.cuh"

namespace medmpi::cuda {
namespace {

constexpr int kThreads = 256, kEach = 8;

__global__ void narrow_kernel(int64_t count, const float* values, Bf16* narrow) {
  const int64_t at = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kEach;
  if (at + kEach <= count && reinterpret_cast<uintptr_t>(values) % 16 == 0) {
    const float4 a = *reinterpret_cast<const float4*>(values + at);
    const float4 b = *reinterpret_cast<const float4*>(values + at + 4);
    *reinterpret_cast<uint4*>(narrow + at) =
        make_uint4(to_bf16x2(a.x, a.y), to_bf16x2(a.z, a.w), to_bf16x2(b.x, b.y), to_bf16x2(b.z, b.w));
    return;
  }
  for (int64_t i = at; i < at + kEach && i < count; ++i) narrow[i] = static_cast<Bf16>(to_bf16x2(values[i], 0.0f));
}

}  // namespace

const Bf16* narrowed(int slot, const float* values, int64_t count) {
  Bf16* narrow = static_cast<Bf16*>(device_scratch(slot, static_cast<size_t>(count) * sizeof(Bf16)));
  launch(narrow_kernel, blocks_for(count, kThreads * kEach, int64_t{1} << 31), kThreads, 0, count, values, narrow);
  return narrow;
}

}  // namespace medmpi::cuda
