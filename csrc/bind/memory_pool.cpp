#include "bind/memory_pool.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <new>

namespace medmpi {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

size_t rounded(size_t bytes) {
  const size_t unit = bytes >= kHugePage ? size_t{1} << 16 : bytes >= 4096 ? 4096 : 64;
  return (std::max<size_t>(bytes, 1) + unit - 1) / unit * unit;
}

void* fresh(size_t size) {
  if (size < kHugePage) return std::aligned_alloc(64, size);
  void* data = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) return nullptr;
  madvise(data, size, MADV_HUGEPAGE);
  return data;
}

void release(void* data, size_t size) {
  if (size < kHugePage)
    std::free(data);
  else
    munmap(data, size);
}

}  // namespace

MemoryPool::Block MemoryPool::take(size_t bytes) {
  const size_t size = rounded(bytes);
  {
    std::lock_guard<std::mutex> lock(mutex_);
    auto it = free_.lower_bound(size);
    if (it != free_.end() && it->first <= size + size / 8) {
      const Block block{it->second.back(), it->first};
      it->second.pop_back();
      if (it->second.empty()) free_.erase(it);
      now_.in_use += block.size;
      now_.peak = std::max(now_.peak, now_.in_use);
      return block;
    }
  }
  void* data = fresh(size);
  if (!data) {
    trim();
    data = fresh(size);
  }
  if (!data) throw std::bad_alloc();
  std::lock_guard<std::mutex> lock(mutex_);
  now_.reserved += size;
  now_.in_use += size;
  now_.peak = std::max(now_.peak, now_.in_use);
  ++now_.fresh_blocks;
  return {data, size};
}

void MemoryPool::give(Block block) {
  std::lock_guard<std::mutex> lock(mutex_);
  now_.in_use -= block.size;
  free_[block.size].push_back(block.data);
}

void MemoryPool::trim() {
  std::lock_guard<std::mutex> lock(mutex_);
  for (auto& [size, blocks] : free_)
    for (void* data : blocks) {
      release(data, size);
      now_.reserved -= size;
    }
  free_.clear();
}

MemoryPool::Statistics MemoryPool::statistics() {
  std::lock_guard<std::mutex> lock(mutex_);
  return now_;
}

void MemoryPool::reset_peak() {
  std::lock_guard<std::mutex> lock(mutex_);
  now_.peak = now_.in_use;
}

MemoryPool& memory_pool() {
  static MemoryPool* instance = new MemoryPool;
  return *instance;
}

}  // namespace medmpi
