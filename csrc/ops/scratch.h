#pragma once
#include <cstddef>
#include <cstdint>

namespace medmpi {

/// Fresh zeroed pages for at least `bytes`, huge ones where that pays; `size` is what munmap wants. Null without
/// memory.
void* map_pages(size_t bytes, size_t& size);

/// Scratch of the calling thread, 64-byte aligned, at least `bytes` long, contents undefined. Each slot is a
/// buffer of its own that only grows and lives as long as the thread: kernels never allocate in the steady state.
/// Throws std::bad_alloc when the system has no memory left.
void* scratch(int slot, size_t bytes);

inline float* scratch_floats(int slot, int64_t count) {
  return static_cast<float*>(scratch(slot, static_cast<size_t>(count) * sizeof(float)));
}

}  // namespace medmpi
