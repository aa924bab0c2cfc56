// ReLU forward and backward: one pass over memory, in chunks that fit the second-level cache.
#include "ops/activation.h"

#include "cpu/simd.h"
#include "cpu/threads.h"

namespace medmpi::MEDMPI_ISA {
namespace {

constexpr int64_t kChunk = 1 << 16;

/// y = max(x, 0); NaN stays NaN, as in torch.
void relu(int64_t n, const float* x, float* y) {
  for_chunks(n, kChunk, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) y[i] = x[i] < 0.0f ? 0.0f : x[i];
  });
}

/// dx = dy where y > 0.
void relu_backward(int64_t n, const float* dy, const float* y, float* dx) {
  for_chunks(n, kChunk, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const float whole = dy[i];  // read in any case, so that the choice is a mask and not a branch
      dx[i] = y[i] > 0.0f ? whole : 0.0f;
    }
  });
}

}  // namespace

extern const ActivationOps activation;
const ActivationOps activation = {relu, relu_backward};

}  // namespace medmpi::MEDMPI_ISA
