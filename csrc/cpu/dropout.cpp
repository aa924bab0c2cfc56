// Dropout by Philox4x32-10: 16 counters side by side give 64 elements, each lane's four words 16 elements apart, so
// that nothing is shuffled and every instruction set draws the same bits.
#include "ops/dropout.h"

#include "cpu/simd.h"
#include "cpu/threads.h"
#include "cpu/vecmath.h"

namespace medmpi::MEDMPI_ISA {
namespace {

constexpr int kCounters = 16;
constexpr uint64_t kBlock = 4 * kCounters;
constexpr int64_t kChunk = 1 << 15;

/// The 64 words of block `block`. Groups of counters run side by side: one alone would wait for its own products.
MEDMPI_INLINE void random_block(uint64_t seed, uint64_t block, uint32_t* words) {
  constexpr int kGroups = kCounters / kLanes;
  const uint64_t first = block * kCounters;  // a multiple of 16: the low half never carries within the block
  alignas(64) uint32_t low[kCounters];
  for (uint32_t i = 0; i < kCounters; ++i) low[i] = static_cast<uint32_t>(first) + i;
  Words c0[kGroups], c1[kGroups], c2[kGroups], c3[kGroups];
  for (int g = 0; g < kGroups; ++g) {
    std::memcpy(&c0[g], low + g * kLanes, sizeof(Words));
    c1[g] = Words{} + static_cast<uint32_t>(first >> 32);
    c2[g] = c3[g] = Words{};
  }
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u)
#pragma GCC unroll 4
    for (int g = 0; g < kGroups; ++g) {
      Words a_high, a_low, b_high, b_low;
      multiply_wide(c0[g], 0xD2511F53u, &a_high, &a_low);
      multiply_wide(c2[g], 0xCD9E8D57u, &b_high, &b_low);
      c0[g] = b_high ^ c1[g] ^ k0;
      c1[g] = b_low;
      c2[g] = a_high ^ c3[g] ^ k1;
      c3[g] = a_low;
    }
  for (int g = 0; g < kGroups; ++g) {
    std::memcpy(words + g * kLanes, &c0[g], sizeof(Words));
    std::memcpy(words + kCounters + g * kLanes, &c1[g], sizeof(Words));
    std::memcpy(words + 2 * kCounters + g * kLanes, &c2[g], sizeof(Words));
    std::memcpy(words + 3 * kCounters + g * kLanes, &c3[g], sizeof(Words));
  }
}

void apply(int64_t n, uint64_t limit, float scale, uint64_t seed, uint64_t offset, const float* x, float* y) {
  if (limit >> 32) {
    for_chunks(n, kChunk, [=](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) y[i] = 0.0f;
    });
    return;
  }
  const uint32_t least = static_cast<uint32_t>(limit);
  for_chunks(n, kChunk, [=](int64_t begin, int64_t end) {
    alignas(64) uint32_t words[kBlock];
    for (int64_t i = begin; i < end;) {
      const uint64_t element = offset + static_cast<uint64_t>(i);
      const int64_t skip = static_cast<int64_t>(element % kBlock), left = static_cast<int64_t>(kBlock) - skip;
      const int64_t count = end - i < left ? end - i : left;
      random_block(seed, element / kBlock, words);
      if (count == static_cast<int64_t>(kBlock)) {
#pragma GCC ivdep
        for (int64_t j = 0; j < static_cast<int64_t>(kBlock); ++j) {
          const float kept = x[i + j] * scale;
          y[i + j] = words[j] >= least ? kept : 0.0f;
        }
      } else {
        for (int64_t j = 0; j < count; ++j) y[i + j] = words[skip + j] >= least ? x[i + j] * scale : 0.0f;
      }
      i += count;
    }
  });
}

}  // namespace

extern const DropoutOps dropout;
const DropoutOps dropout = {apply};

}  // namespace medmpi::MEDMPI_ISA
