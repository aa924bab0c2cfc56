#include "ops/weight_cache.h"

#include <sys/mman.h>

#include "ops/scratch.h"

namespace medmpi {
namespace {

thread_local WeightCache* current = nullptr;

}  // namespace

WeightCache::~WeightCache() { release(); }

void WeightCache::release() {
  if (data_) munmap(data_, size_);
  data_ = nullptr;
  size_ = 0;
  ready_ = false;
}

void WeightCache::clear() {
  const std::lock_guard<std::mutex> lock(mutex_);
  release();
}

WeightCache::Use::Use(WeightCache* cache, const Key& key) : cache_(cache) {
  if (!cache) return;
  lock_ = std::unique_lock<std::mutex>(cache->mutex_);
  if (cache->key_ != key) {
    cache->release();
    cache->key_ = key;
  }
  current = cache;
}

WeightCache::Use::~Use() {
  if (!cache_) return;
  cache_->ready_ = cache_->data_ != nullptr;
  current = nullptr;
}

float* packed_weights(int slot, int64_t count, bool& ready) {
  const size_t bytes = static_cast<size_t>(count) * sizeof(float);
  ready = false;
  if (!current) return scratch_floats(slot, count);
  if (current->ready_ && bytes <= current->size_) {
    ready = true;
    return current->data_;
  }
  current->release();
  size_t size = 0;
  void* data = map_pages(bytes, size);
  if (!data) return scratch_floats(slot, count);
  current->data_ = static_cast<float*>(data);
  current->size_ = size;
  return current->data_;
}

bool weights_are_kept() { return current != nullptr; }
bool weights_ready() { return current && current->ready_; }

}  // namespace medmpi
