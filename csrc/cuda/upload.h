#pragma once
// Copies to the device beside its work: from page-locked host memory, on a stream of their own.
#include <cstdint>
#include <deque>

#include "cuda/memory.h"

namespace medmpi::cuda {

/// Page-locked host memory, which is slow to get and therefore kept: at least `bytes`.
Block pinned_allocate(size_t bytes);
void pinned_release(Block block) noexcept;
/// Whether a pointer lies in such memory.
bool is_pinned(const void* data);

/// A stream for copies. One thread uses it at a time.
class CopyStream {
 public:
  CopyStream();
  /// Waits for its copies.
  ~CopyStream();
  CopyStream(const CopyStream&) = delete;
  CopyStream& operator=(const CopyStream&) = delete;

  Stream stream() const { return stream_; }
  /// Copies page-locked memory, which has to stay as it is until the copy is `done`. Returns at once, with its number.
  uint64_t copy(void* to, const void* from, size_t bytes);
  /// The number of copies that are done, after waiting for the first `least` ones.
  uint64_t done(uint64_t least);

 private:
  struct Pending {
    uint64_t number;
    void* event;
  };
  Stream stream_ = nullptr;
  std::deque<Pending> pending_;
  std::deque<void*> events_;  // that are free
  uint64_t copies_ = 0;
};

}  // namespace medmpi::cuda
