// The ordered sum over ranks: segments stream through in blocks that stay in the first-level cache between the
// additions and the stores.
#include "ops/collective.h"

#include "cpu/simd.h"
#include "cpu/threads.h"

namespace medmpi::MEDMPI_ISA {
namespace {

constexpr int64_t kChunk = 1 << 16;
constexpr int64_t kBlock = 1024;

/// The case of most laptops: two segments need no buffer between.
inline void reduce_two(float* a, float* b, bool both, int64_t n) {
  if (both) {
    for (int64_t i = 0; i < n; ++i) {
      const float sum = a[i] + b[i];
      a[i] = sum;
      b[i] = sum;
    }
  } else {
    for (int64_t i = 0; i < n; ++i) a[i] += b[i];
  }
}

inline void reduce_block(int ranks, int targets, float* const* segments, int64_t at, int64_t n) {
  alignas(64) float sum[kBlock];
  const float* first = segments[0] + at;
  for (int64_t i = 0; i < n; ++i) sum[i] = first[i];
  for (int r = 1; r < ranks; ++r) {
    const float* next = segments[r] + at;
    for (int64_t i = 0; i < n; ++i) sum[i] += next[i];
  }
  for (int r = 0; r < targets; ++r) __builtin_memcpy(segments[r] + at, sum, static_cast<size_t>(n) * sizeof(float));
}

void reduce(int ranks, int targets, float* const* segments, int64_t begin, int64_t end) {
  for_chunks(end - begin, kChunk, [=](int64_t from, int64_t to) {
    from += begin;
    to += begin;
    if (ranks == 2) return reduce_two(segments[0] + from, segments[1] + from, targets == 2, to - from);
    for (int64_t at = from; at < to; at += kBlock)
      reduce_block(ranks, targets, segments, at, to - at < kBlock ? to - at : kBlock);
  });
}

}  // namespace

extern const CollectiveOps collective;
const CollectiveOps collective = {reduce};

}  // namespace medmpi::MEDMPI_ISA
