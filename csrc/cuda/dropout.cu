// Dropout by Philox4x32-10, the same bits as on the CPU: element e uses word (e % 64) / 16 of counter
// e / 64 * 16 + e % 16. A thread draws one counter and handles the four elements of its words.
#include "cuda/elements.cuh"
#include "ops/dropout.h"

namespace medmpi::cuda {
namespace {

struct Words {
  uint32_t word[4];
};

__device__ __forceinline__ Words philox(uint64_t seed, uint64_t counter) {
  uint32_t c0 = static_cast<uint32_t>(counter), c1 = static_cast<uint32_t>(counter >> 32), c2 = 0, c3 = 0;
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
#pragma unroll
  for (int round = 0; round < 10; ++round, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
    const uint32_t a_high = __umulhi(c0, 0xD2511F53u), a_low = c0 * 0xD2511F53u;
    const uint32_t b_high = __umulhi(c2, 0xCD9E8D57u), b_low = c2 * 0xCD9E8D57u;
    c0 = b_high ^ c1 ^ k0;
    c1 = b_low;
    c2 = a_high ^ c3 ^ k1;
    c3 = a_low;
  }
  return {{c0, c1, c2, c3}};
}

struct Key {
  uint64_t seed, offset;
  const int64_t* in_memory;  // instead, unless null
};

/// `counters` counters from that of element `offset` on; elements before it and from n on are left alone.
__global__ void __launch_bounds__(kThreads)
    drop(int64_t n, int64_t counters, uint64_t limit, float scale, Key key, const float* x, float* y) {
  const uint64_t seed = key.in_memory ? static_cast<uint64_t>(key.in_memory[0]) : key.seed;
  const uint64_t offset = key.in_memory ? static_cast<uint64_t>(key.in_memory[1]) : key.offset;
  const uint64_t first = offset / 64 * 16;
  for (int64_t i = first_of_grid(); i < counters; i += size_of_grid()) {
    const uint64_t counter = first + static_cast<uint64_t>(i);
    const Words random = philox(seed, counter);
    const auto at = static_cast<int64_t>(counter / 16 * 64 + counter % 16 - offset);
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      const int64_t e = at + 16 * w;
      if (e >= 0 && e < n) y[e] = random.word[w] >= limit ? x[e] * scale : 0.0f;
    }
  }
}

void apply(int64_t n, uint64_t limit, float scale, uint64_t seed, uint64_t offset, const float* x, float* y) {
  if (n <= 0) return;
  const uint64_t blocks = (offset + static_cast<uint64_t>(n) - 1) / 64 - offset / 64 + 1;
  const auto counters = static_cast<int64_t>(blocks * 16);
  launch(drop, blocks_for(counters, kThreads), kThreads, 0, n, counters, limit, scale, Key{seed, offset, nullptr}, x,
         y);
}

void apply_keyed(int64_t n, uint64_t limit, float scale, const int64_t* key, const float* x, float* y) {
  if (n <= 0) return;
  const int64_t counters = (n / 64 + 2) * 16;  // enough wherever within 64 elements the first one is
  launch(drop, blocks_for(counters, kThreads), kThreads, 0, n, counters, limit, scale, Key{0, 0, key}, x, y);
}

}  // namespace

extern const DropoutOps dropout;
const DropoutOps dropout = {apply, apply_keyed};

}  // namespace medmpi::cuda
