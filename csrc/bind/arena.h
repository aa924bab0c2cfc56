#pragma once
// One block of memory for the arrays of a computation that repeats, a training step or an inference. The first pass
// notes which arrays are made, how large, and when they die; then every array gets a place in one block, such that
// those that live at the same time do not overlap. Later passes hand out these places for as long as they do the same
// in the same order, with arrays as large or smaller; what differs, and what outlived the first pass, comes from the
// pool. A pass whose arrays are larger, in the same order, makes the plan grow.
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "bind/memory_pool.h"

namespace medmpi {

class Arena : public std::enable_shared_from_this<Arena> {
 public:
  /// The block; it lives as long as the arena's plan and the arrays in it.
  class Memory {
   public:
    explicit Memory(size_t bytes) : block_(memory_pool().take(bytes)) {}
    ~Memory() { memory_pool().give(block_); }
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;
    char* data() const { return static_cast<char*>(block_.data); }
    size_t size() const { return block_.size; }

   private:
    MemoryPool::Block block_;
  };
  /// An array's claim: where it is in the order of the pass, and the memory it holds; null where it has none.
  struct Claim {
    int64_t index = -1, pass = -1;
    std::shared_ptr<Memory> memory;
    void* data = nullptr;
  };

  /// The arena of the calling thread's pass, or null.
  static Arena* active();

  /// Between these the calling thread's arrays are the arena's. RuntimeError (std::logic_error) where a pass is on.
  void begin();
  void end();

  /// Memory for the next array of the pass; without data the pool has to give some. Every claim is given back.
  Claim take(size_t bytes);
  void give(const Claim& claim);

  /// Bytes of the block; 0 before the plan is made.
  size_t size();
  /// Whether a pointer lies in the block.
  bool holds(const void* data);

 private:
  struct Array {
    size_t bytes;
    int64_t begin, end;  // when it was made and died, by the order of the pass; end is -1 while it lives
    int64_t offset;      // in the block, -1 for none
  };

  void plan();

  std::mutex mutex_;
  std::vector<Array> arrays_;
  std::vector<int64_t> order_;  // of the pass: i + 1 for making array i, -(i + 1) for its death
  std::shared_ptr<Memory> memory_;
  int64_t pass_ = 0, live_ = 0, strays_ = 0;  // live arrays in the block, passes in a row that strayed from the plan
  size_t cursor_ = 0;
  bool planned_ = false, astray_ = false, grown_ = false, running_ = false;
};

}  // namespace medmpi
