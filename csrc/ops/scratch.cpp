#include "ops/scratch.h"

#include <sys/mman.h>

#include <cstdint>

namespace medmpi {
namespace {

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

void* scratch(int slot, size_t bytes) {
  thread_local Buffers buffers;
  if (buffers.size[slot] >= bytes && buffers.data[slot]) return buffers.data[slot];
  const size_t page = bytes >= kHugePage ? kHugePage : size_t{1} << 16;
  const size_t size = (bytes + page) / page * page;
  void* fresh = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (fresh == MAP_FAILED) return nullptr;
  if (size >= kHugePage) madvise(fresh, size, MADV_HUGEPAGE);
  if (buffers.data[slot]) munmap(buffers.data[slot], buffers.size[slot]);
  buffers.data[slot] = fresh;
  buffers.size[slot] = size;
  return fresh;
}

}  // namespace medmpi
