#pragma once
#include <cstddef>

namespace medmpi {

/// Scratch of the calling thread, 64-byte aligned, at least `bytes` long, contents undefined. Each slot is a
/// buffer of its own that only grows and lives as long as the thread: kernels never allocate in the steady state.
/// Returns null when the system has no memory left.
void* scratch(int slot, size_t bytes);

}  // namespace medmpi
