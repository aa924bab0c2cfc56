// Bursts of known work. 24 accumulators hide the latency of the multiply-add on every x86 core.
#include "ops/probe.h"

#include "cpu/simd.h"

namespace medmpi::MEDMPI_ISA {
namespace {

constexpr int kChains = sizeof(Vec) == 64 ? 24 : 12;

int64_t multiply_add(int64_t rounds, float* sink) {
  Vec acc[kChains];
  for (int i = 0; i < kChains; ++i) acc[i] = broadcast(static_cast<float>(i) * 1e-9f);
  const Vec a = broadcast(0.999f), b = broadcast(1e-7f);
  for (int64_t k = 0; k < rounds; ++k) {
#pragma GCC unroll 24
    for (int i = 0; i < kChains; ++i) acc[i] = acc[i] * a + b;
  }
  Vec sum{};
  for (int i = 0; i < kChains; ++i) sum += acc[i];
  store(sink, sum);
  return rounds * kChains * kLanes * 2;
}

void copy(int64_t n, const float* x, float* y) { std::memcpy(y, x, static_cast<size_t>(n) * sizeof(float)); }

}  // namespace

extern const ProbeOps probe;
const ProbeOps probe = {multiply_add, copy};

}  // namespace medmpi::MEDMPI_ISA
