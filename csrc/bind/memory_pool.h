#pragma once
// Where every result of a kernel lives: blocks that return to a pool when their array dies, and are handed out again
// to the next array of about that size. A training step repeats the same sizes, so in the steady state no memory is
// asked from the system and no page is touched for the first time, which costs more than the arithmetic on it.
#include <cstddef>
#include <map>
#include <mutex>
#include <vector>

namespace medmpi {

class MemoryPool {
 public:
  struct Block {
    void* data = nullptr;
    size_t size = 0;
  };
  struct Statistics {
    size_t in_use = 0, reserved = 0, peak = 0, fresh_blocks = 0;
  };

  /// A block of at least `bytes`, 64-byte aligned. The best fit is taken when it wastes less than an eighth.
  Block take(size_t bytes);
  void give(Block block);
  /// Hands every free block back to the system.
  void trim();
  Statistics statistics();
  void reset_peak();

 private:
  std::mutex mutex_;
  std::map<size_t, std::vector<void*>> free_;
  Statistics now_;
};

/// The pool of this process. Never destroyed: arrays may outlive the module.
MemoryPool& memory_pool();

}  // namespace medmpi
