#include <cuda_runtime.h>

#include <map>
#include <mutex>
#include <vector>

#include "cuda/launch.cuh"
#include "cuda/upload.h"

namespace medmpi::cuda {
namespace {

constexpr size_t kPinnedUnit = size_t{1} << 16;

/// Never destroyed: arrays may outlive the module.
struct Pinned {
  std::mutex mutex;
  std::map<const char*, size_t> blocks;
  std::map<size_t, std::vector<void*>> free;
};
Pinned& pinned() {
  static Pinned* instance = new Pinned;
  return *instance;
}

}  // namespace

Block pinned_allocate(size_t bytes) {
  current_stream();  // chooses this process's device
  const size_t size = (bytes ? bytes + kPinnedUnit - 1 : kPinnedUnit) / kPinnedUnit * kPinnedUnit;
  const std::lock_guard<std::mutex> lock(pinned().mutex);
  auto& free = pinned().free;
  if (const auto it = free.lower_bound(size); it != free.end() && it->first <= 2 * size) {
    const Block block{it->second.back(), it->first};
    it->second.pop_back();
    if (it->second.empty()) free.erase(it);
    return block;
  }
  void* data = nullptr;
  check(cudaMallocHost(&data, size), "cudaMallocHost");
  pinned().blocks[static_cast<const char*>(data)] = size;
  return {data, size};
}

void pinned_release(Block block) noexcept {
  const std::lock_guard<std::mutex> lock(pinned().mutex);
  pinned().free[block.size].push_back(block.data);
}

bool is_pinned(const void* data) {
  const std::lock_guard<std::mutex> lock(pinned().mutex);
  auto it = pinned().blocks.upper_bound(static_cast<const char*>(data));
  if (it == pinned().blocks.begin()) return false;
  --it;
  return static_cast<const char*>(data) < it->first + it->second;
}

CopyStream::CopyStream() {
  current_stream();
  cudaStream_t made = nullptr;
  check(cudaStreamCreateWithFlags(&made, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
  stream_ = made;
}

CopyStream::~CopyStream() {
  cudaStreamSynchronize(static_cast<cudaStream_t>(stream_));
  for (const Pending& p : pending_) cudaEventDestroy(static_cast<cudaEvent_t>(p.event));
  for (void* event : events_) cudaEventDestroy(static_cast<cudaEvent_t>(event));
  // the stream stays: memory that was used on it knows it by its handle
}

uint64_t CopyStream::copy(void* to, const void* from, size_t bytes) {
  const auto on = static_cast<cudaStream_t>(stream_);
  if (bytes) check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, on), "cudaMemcpyAsync");
  cudaEvent_t event = nullptr;
  if (events_.empty()) {
    check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreateWithFlags");
  } else {
    event = static_cast<cudaEvent_t>(events_.back());
    events_.pop_back();
  }
  pending_.push_back({++copies_, event});
  check(cudaEventRecord(event, on), "cudaEventRecord");
  return copies_;
}

uint64_t CopyStream::done(uint64_t least) {
  while (!pending_.empty()) {
    const Pending first = pending_.front();
    const auto event = static_cast<cudaEvent_t>(first.event);
    if (first.number <= least) {
      check(cudaEventSynchronize(event), "cudaEventSynchronize");
    } else {
      const cudaError_t status = cudaEventQuery(event);
      if (status == cudaErrorNotReady) return first.number - 1;
      check(status, "cudaEventQuery");
    }
    events_.push_back(first.event);
    pending_.pop_front();
  }
  return copies_;
}

}  // namespace medmpi::cuda
