#pragma once
#include "cuda/mma.cuh"

namespace medmpi::cuda {

/// A copy of float32 values rounded to bf16 in the calling thread's scratch.
const Bf16* narrowed(int slot, const float* values, int64_t count);

}  // namespace medmpi::cuda
