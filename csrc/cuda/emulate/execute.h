#pragma once
// Execution of CUDA kernels on the CPU, to test them without a GPU. Not fast and not parallel: one block after the
// other, its threads as fibers that change places at barriers. What it finds, and reports as the launch's error:
//   - a barrier or a warp operation that some threads never reach, or reach at another place of the source;
//   - kernels that depend on the order of blocks or of threads between barriers: MEDMPI_EMULATE_ORDER is `reverse`
//     (default), `forward` or `shuffle`, and results must not change;
//   - reads of shared memory that nothing wrote (dynamic_shared() and shared_variable() hold NaN before each block),
//     and writes beyond its end;
//   - reads and writes outside allocations, by the kernel, and any by the host (see memory.cpp).
//
// Instructions by which the lanes of a warp exchange registers (mma.sync, ldmatrix) are written in C++ as
//   struct Mine { const uint32_t* a; const uint32_t* b; float* d; } mine{...};
//   warp_collective(MEDMPI_SITE, 0xffffffffu, mine, [](Mine* const* lane) { ... lane[i]->d[j] += ... });
// All lanes of the mask post their registers; when the last one has arrived the body runs once and may read and write
// what every lane posted; then all go on. Lanes that are not of the mask are null.
#include <cstddef>
#include <cstdint>
#include <functional>
#include <tuple>
#include <utility>

namespace medmpi::emulate {

struct Index {
  unsigned x, y, z;
};

/// Where in the source a thread waits.
struct Site {
  const char* file;
  int line;
  const char* what;
};

/// The thread that runs now.
struct Thread {
  Index thread, block, block_size, grid_size;
  unsigned lane, warp;
};
extern const Thread* current;

void block_barrier(const Site& site);
/// See warp_collective.
void meet(const Site& site, unsigned mask, void* mine, void (*body)(void* const* lanes, void* context), void* context);
unsigned active_lanes();

/// Dynamic shared memory of the block.
void* dynamic_shared();
/// A variable of the block's shared memory, known by the address of something that is its own.
void* shared_variable(const void* key, size_t bytes, const char* name);

/// Runs body() for each thread of each block. Empty, or what went wrong.
const char* run_grid(const Index& grid, const Index& block, size_t shared_bytes, const std::function<void()>& body);

template <typename T, typename Body>
void warp_collective(const Site& site, unsigned mask, T& mine, Body body) {
  meet(
      site, mask, &mine,
      [](void* const* lanes, void* context) {
        T* typed[32];
        for (int i = 0; i < 32; ++i) typed[i] = static_cast<T*>(lanes[i]);
        (*static_cast<Body*>(context))(typed);
      },
      &body);
}

}  // namespace medmpi::emulate

#define MEDMPI_SITE (::medmpi::emulate::Site{__FILE__, __LINE__, __func__})
