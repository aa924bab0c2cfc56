#include "ops/scratch.h"

#include <sys/mman.h>

#include <cstdint>
#include <new>

namespace medmpi {
namespace {

/// Becomes Python's MemoryError; within a parallel region it ends the process, with these words.
struct NoScratch : std::bad_alloc {
  const char* what() const noexcept override { return "no memory left for a kernel's scratch"; }
};

constexpr int kSlots = 16;
constexpr size_t kHugePage = size_t{2} << 20;

struct Buffers {
  void* data[kSlots] = {};
  size_t size[kSlots] = {};
  ~Buffers() {
    for (int i = 0; i < kSlots; ++i)
      if (data[i]) munmap(data[i], size[i]);
  }
};

}  // namespace

void* map_pages(size_t bytes, size_t& size) {
  const size_t page = bytes >= kHugePage ? kHugePage : size_t{1} << 16;
  size = (bytes + page) / page * page;
  void* fresh = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (fresh == MAP_FAILED) return nullptr;
  if (size >= kHugePage) madvise(fresh, size, MADV_HUGEPAGE);
  return fresh;
}

void* scratch(int slot, size_t bytes) {
  thread_local Buffers buffers;
  if (buffers.size[slot] >= bytes && buffers.data[slot]) return buffers.data[slot];
  size_t size = 0;
  void* fresh = map_pages(bytes, size);
  if (!fresh) throw NoScratch();
  if (buffers.data[slot]) munmap(buffers.data[slot], buffers.size[slot]);
  buffers.data[slot] = fresh;
  buffers.size[slot] = size;
  return fresh;
}

}  // namespace medmpi
