#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <mutex>

namespace medmpi {

/// A layer's weights in the order that a kernel wants them, kept between calls. For weights that do not change: at
/// batch 1 reading them is most of the work, and packing them reads and writes them once more.
class WeightCache {
 public:
  /// What the packed form depends on: sizes, algorithm, backend.
  using Key = std::array<int64_t, 17>;

  WeightCache() = default;
  ~WeightCache();
  WeightCache(const WeightCache&) = delete;
  WeightCache& operator=(const WeightCache&) = delete;

  /// Forgets the weights.
  void clear();
  /// Bytes held.
  size_t size() const { return size_; }

  /// While it lives the cache (none, if null) is that of the kernel that the calling thread runs.
  class Use {
   public:
    Use(WeightCache* cache, const Key& key);
    ~Use();
    Use(const Use&) = delete;
    Use& operator=(const Use&) = delete;

   private:
    WeightCache* cache_;
    std::unique_lock<std::mutex> lock_;
  };

 private:
  friend float* packed_weights(int slot, int64_t count, bool& ready);
  friend bool weights_ready();

  void release();

  std::mutex mutex_;
  Key key_{};
  float* data_ = nullptr;
  size_t size_ = 0;
  bool ready_ = false;
};

/// Memory for `count` packed floats: the cache's in use, with `ready` set where an earlier call has filled it, else
/// scratch. The caller fills what is not ready. A call packs one array at most.
float* packed_weights(int slot, int64_t count, bool& ready);

/// Whether a cache is in use, so that packing costs nothing in the long run, and whether it is filled.
bool weights_are_kept();
bool weights_ready();

}  // namespace medmpi
