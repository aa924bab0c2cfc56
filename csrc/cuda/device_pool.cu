#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>
#include <optional>
#include <stdexcept>

#include "cuda/device_pool.h"
#include "cuda/launch.cuh"

namespace medmpi::cuda {
namespace {

constexpr size_t kUnit = 512;

/// Bytes from "123", "512M", "1.5G"; std::runtime_error for anything else.
size_t parse_bytes(const char* text) {
  char* end = nullptr;
  const double number = std::strtod(text, &end);
  double unit = 1;
  if (*end == 'K' || *end == 'k') unit = 1024.0;
  if (*end == 'M' || *end == 'm') unit = 1024.0 * 1024;
  if (*end == 'G' || *end == 'g') unit = 1024.0 * 1024 * 1024;
  if (unit > 1) ++end;
  if (end == text || *end || !(number > 0) || number * unit >= 9e18)
    throw std::runtime_error("MEDMPI_DEVICE_MEMORY is '" + std::string(text) +
                             "', expected a number of bytes such as 8G or 512M");
  return static_cast<size_t>(number * unit);
}

std::string mebibytes(size_t bytes) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f MiB", static_cast<double>(bytes) / (1024.0 * 1024));
  return text;
}

/// Small blocks in units of 512 bytes, large ones in sixteenths of a power of two: few sizes, little waste.
size_t rounded(size_t bytes) {
  bytes = bytes ? bytes : 1;
  size_t unit = kUnit;
  while (unit * 32 < bytes) unit *= 2;
  return (bytes + unit - 1) / unit * unit;
}

/// While it lives the calling thread may ask the device for memory although it captures a stream.
class CaptureRelaxed {
 public:
  CaptureRelaxed() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  ~CaptureRelaxed() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  CaptureRelaxed(const CaptureRelaxed&) = delete;
  CaptureRelaxed& operator=(const CaptureRelaxed&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

}  // namespace

Block DevicePool::take(size_t bytes, Stream stream, uint64_t home) {
  const size_t size = rounded(bytes);
  std::optional<CaptureRelaxed> relaxed;
  if (home) relaxed.emplace();
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!cap_read_) read_cap();
    Block block;
    if (home) block = reuse(homes_.at(home), size);
    if (!block.data) block = reuse(streams_[stream], size);
    block.home = home;
    if (block.data) return block;
    if (now_.cap && now_.reserved + size > now_.cap) free_all();
    if (now_.cap && now_.reserved + size > now_.cap) fail(size, "the cap");
  }
  void* data = nullptr;
  cudaError_t status = cudaMalloc(&data, size);
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    trim();
    status = cudaMalloc(&data, size);
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    fail(size, "the device");
  }
  check(status, "cudaMalloc");
  now_.reserved += size;
  count(size);
  return {data, size, home};
}

void DevicePool::give(Block block, Stream stream) {
#ifdef MEDMPI_CUDA_EMULATED
  emulate::poison(block.data, block.size, static_cast<cudaStream_t>(stream), block.home != 0);
#endif
  const std::lock_guard<std::mutex> lock(mutex_);
  now_.in_use -= block.size;
  const auto home = homes_.find(block.home);
  (home == homes_.end() ? streams_[stream] : home->second)[block.size].push_back(block.data);
}

void DevicePool::trim() {
  const std::lock_guard<std::mutex> lock(mutex_);
  free_all();
}

Statistics DevicePool::statistics() {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!cap_read_) read_cap();
  return now_;
}

void DevicePool::reset_peak() {
  const std::lock_guard<std::mutex> lock(mutex_);
  now_.peak = now_.in_use;
}

uint64_t DevicePool::open_home() {
  const std::lock_guard<std::mutex> lock(mutex_);
  homes_[++last_home_];
  return last_home_;
}

void DevicePool::close_home(uint64_t home, Stream stream) {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (auto& [size, pointers] : homes_[home]) {
    auto& free = streams_[stream][size];
    free.insert(free.end(), pointers.begin(), pointers.end());
  }
  homes_.erase(home);
}

Block DevicePool::reuse(Blocks& blocks, size_t size) {
  auto it = blocks.lower_bound(size);
  if (it == blocks.end() || it->first > size + size / 8) return {};
  const Block block{it->second.back(), it->first};
  it->second.pop_back();
  if (it->second.empty()) blocks.erase(it);
  count(block.size);
  return block;
}

void DevicePool::count(size_t size) {
  now_.in_use += size;
  now_.peak = std::max(now_.peak, now_.in_use);
}

/// Work that was given to a stream may still use its free blocks; cudaFree waits for it.
void DevicePool::free_all() {
  for (auto& [stream, blocks] : streams_)
    for (auto& [size, pointers] : blocks)
      for (void* data : pointers) {
        cudaFree(data);
        now_.reserved -= size;
      }
  streams_.clear();
}

void DevicePool::read_cap() {
  const char* text = std::getenv("MEDMPI_DEVICE_MEMORY");
  now_.cap = text && *text ? parse_bytes(text) : 0;
  cap_read_ = true;
}

void DevicePool::fail(size_t size, const char* limit) {
  std::string message = "out of device memory: " + mebibytes(size) + " wanted, " + mebibytes(now_.in_use) +
                        " in use, " + mebibytes(now_.reserved) + " reserved";
  size_t available = 0, total = 0;
  if (cudaMemGetInfo(&available, &total) == cudaSuccess)
    message += ", " + mebibytes(available) + " of the device's " + mebibytes(total) + " free";
  message += now_.cap ? ", cap " + mebibytes(now_.cap) + " (MEDMPI_DEVICE_MEMORY)" : ", no cap";
  throw std::runtime_error(message + "; the limit was " + limit + ": use a smaller batch");
}

DevicePool& device_pool() {
  static DevicePool* instance = new DevicePool;
  return *instance;
}

}  // namespace medmpi::cuda
