#pragma once
// How loops are shared out. A result must not depend on the number of threads: work is split by fixed chunks, and
// only whole chunks go to threads.
#include <omp.h>

#include <cstdint>

namespace medmpi::MEDMPI_ISA {
namespace {

/// Calls body(begin, end) for consecutive chunks of [0, n); small n stays on the calling thread.
template <typename Body>
inline void for_chunks(int64_t n, int64_t chunk, const Body& body) {
  const int64_t chunks = (n + chunk - 1) / chunk;
  if (chunks <= 1) {
    if (n > 0) body(int64_t{0}, n);
    return;
  }
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < chunks; ++i) body(i * chunk, i * chunk + chunk < n ? i * chunk + chunk : n);
}

/// How `tiles` go to threads, at most `capacity` in a block: whole blocks, or each block in parts of its `panels`.
struct TileShare {
  int64_t blocks, parts;
};

/// Parts transform the inputs of their block once each; weights that are not `kept` are transformed for each block.
inline TileShare share_tiles(int64_t tiles, int64_t capacity, int64_t panels, bool kept) {
  const int64_t threads = omp_get_max_threads(), blocks = (tiles + capacity - 1) / capacity;
  if (kept || panels < threads || blocks > threads) {
    const int64_t even = (blocks + threads - 1) / threads * threads;
    return {even < tiles ? even : tiles, 1};
  }
  return {blocks, blocks % threads ? threads : 1};
}

}  // namespace
}  // namespace medmpi::MEDMPI_ISA
