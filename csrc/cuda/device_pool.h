#pragma once
// Device memory by blocks that are kept and handed out again, and what a captured graph needs to have its own.
#include <cstdint>
#include <map>
#include <mutex>
#include <vector>

#include "cuda/memory.h"

namespace medmpi::cuda {

/// Free blocks by where they may be used again: on a stream, whose work is in order, or within a home, the memory of
/// graphs, to whose addresses the graphs go back at every launch. One lock guards all: taking and giving are a few map
/// operations.
class DevicePool {
 public:
  /// A block for use on `stream`; with a home it stays there, also if it was the stream's before.
  Block take(size_t bytes, Stream stream, uint64_t home = 0);
  void give(Block block, Stream stream);
  /// Hands the streams' free blocks back to the device.
  void trim();
  Statistics statistics();
  void reset_peak();

  uint64_t open_home();
  /// From now on the home's blocks are the stream's.
  void close_home(uint64_t home, Stream stream);

 private:
  using Blocks = std::map<size_t, std::vector<void*>>;

  Block reuse(Blocks& blocks, size_t size);
  void count(size_t size);
  void free_all();
  void read_cap();
  [[noreturn]] void fail(size_t size, const char* limit);

  std::mutex mutex_;
  std::map<Stream, Blocks> streams_;
  std::map<uint64_t, Blocks> homes_;
  uint64_t last_home_ = 0;
  Statistics now_{};
  bool cap_read_ = false;
};

/// The pool of this process. Never destroyed: arrays may outlive the module.
DevicePool& device_pool();

}  // namespace medmpi::cuda
