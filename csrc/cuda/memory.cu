// Devices, streams and memory. One lock guards the pool: taking and giving a block is a few map operations.
#include <cuda_runtime.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <stdexcept>
#include <vector>

#include "cuda/launch.cuh"
#include "cuda/memory.h"

namespace medmpi::cuda {
namespace {

constexpr int kSlots = 16;
constexpr size_t kUnit = 512;

std::atomic<int> chosen_device{0};
std::atomic<bool> device_used{false};

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

/// Free blocks by stream and size.
class Pool {
 public:
  Block take(size_t bytes, Stream stream) {
    const size_t size = rounded(bytes);
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (!cap_read_) read_cap();
      if (Block block = reuse(size, stream); block.data) return block;
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
    return {data, size};
  }

  void give(Block block, Stream stream) {
#ifdef MEDMPI_CUDA_EMULATED
    emulate::poison(block.data, block.size);
#endif
    const std::lock_guard<std::mutex> lock(mutex_);
    now_.in_use -= block.size;
    free_[stream][block.size].push_back(block.data);
  }

  void trim() {
    const std::lock_guard<std::mutex> lock(mutex_);
    free_all();
  }

  Statistics statistics() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!cap_read_) read_cap();
    return now_;
  }

  void reset_peak() {
    const std::lock_guard<std::mutex> lock(mutex_);
    now_.peak = now_.in_use;
  }

 private:
  /// Small blocks in units of 512 bytes, large ones in sixteenths of a power of two: few sizes, little waste.
  static size_t rounded(size_t bytes) {
    bytes = bytes ? bytes : 1;
    size_t unit = kUnit;
    while (unit * 32 < bytes) unit *= 2;
    return (bytes + unit - 1) / unit * unit;
  }

  Block reuse(size_t size, Stream stream) {
    auto& blocks = free_[stream];
    auto it = blocks.lower_bound(size);
    if (it == blocks.end() || it->first > size + size / 8) return {};
    const Block block{it->second.back(), it->first};
    it->second.pop_back();
    if (it->second.empty()) blocks.erase(it);
    count(block.size);
    return block;
  }

  void count(size_t size) {
    now_.in_use += size;
    now_.peak = std::max(now_.peak, now_.in_use);
  }

  /// Work that was given to a stream may still use its free blocks; cudaFree waits for it.
  void free_all() {
    for (auto& [stream, blocks] : free_)
      for (auto& [size, pointers] : blocks)
        for (void* data : pointers) {
          cudaFree(data);
          now_.reserved -= size;
        }
    free_.clear();
  }

  void read_cap() {
    const char* text = std::getenv("MEDMPI_DEVICE_MEMORY");
    now_.cap = text && *text ? parse_bytes(text) : 0;
    cap_read_ = true;
  }

  [[noreturn]] void fail(size_t size, const char* limit) {
    std::string message = "out of device memory: " + mebibytes(size) + " wanted, " + mebibytes(now_.in_use) +
                          " in use, " + mebibytes(now_.reserved) + " reserved";
    size_t available = 0, total = 0;
    if (cudaMemGetInfo(&available, &total) == cudaSuccess)
      message += ", " + mebibytes(available) + " of the device's " + mebibytes(total) + " free";
    message += now_.cap ? ", cap " + mebibytes(now_.cap) + " (MEDMPI_DEVICE_MEMORY)" : ", no cap";
    throw std::runtime_error(message + "; the limit was " + limit + ": use a smaller batch");
  }

  std::mutex mutex_;
  std::map<Stream, std::map<size_t, std::vector<void*>>> free_;
  Statistics now_{};
  bool cap_read_ = false;
};

/// Never destroyed: arrays may outlive the module.
Pool& pool() {
  static Pool* instance = new Pool;
  return *instance;
}

/// Streams of threads that have ended, for those that begin. Never destroyed.
struct Streams {
  std::mutex mutex;
  std::vector<cudaStream_t> idle;
};
Streams& streams() {
  static Streams* instance = new Streams;
  return *instance;
}

/// What a thread owns on the device.
struct ThreadState {
  cudaStream_t stream = nullptr;
  cudaEvent_t event = nullptr;
  Block scratch[kSlots], upload[kSlots];
  void* pinned[kSlots] = {};
  size_t pinned_size[kSlots] = {};

  ThreadState() {
    device_used.store(true);
    check(cudaSetDevice(chosen_device.load()), "cudaSetDevice");
    {
      const std::lock_guard<std::mutex> lock(streams().mutex);
      if (!streams().idle.empty()) {
        stream = streams().idle.back();
        streams().idle.pop_back();
      }
    }
    if (!stream) check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
    check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreateWithFlags");
  }
  ~ThreadState() {
    for (int i = 0; i < kSlots; ++i) {
      if (scratch[i].data) pool().give(scratch[i], stream);
      if (upload[i].data) pool().give(upload[i], stream);
      // pinned memory is freed at the end of the process: work of the stream may still read it
    }
    const std::lock_guard<std::mutex> lock(streams().mutex);
    streams().idle.push_back(stream);
  }
};

ThreadState& thread_state() {
  thread_local ThreadState state;
  return state;
}

void* grown(Block& block, size_t bytes, cudaStream_t on) {
  if (block.data && block.size >= bytes) return block.data;
  if (block.data) pool().give(block, on);
  block = {};
  block = pool().take(bytes, on);
  return block.data;
}

struct Constants {
  std::mutex mutex;
  std::map<std::string, void*> tables;  // by content
};
Constants& constants() {
  static Constants* instance = new Constants;
  return *instance;
}

bool synchronous() {
  static const bool wanted = [] {
    const char* text = std::getenv("MEDMPI_SYNC");
    return text && *text && std::strcmp(text, "0") != 0;
  }();
  return wanted;
}

}  // namespace

void check(cudaError_t status, const char* call) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // so that the next call does not report it again
  throw std::runtime_error(std::string(call) + ": " + cudaGetErrorString(status) + " (" + cudaGetErrorName(status) +
                           ")");
}

void after_launch() {
  check(cudaGetLastError(), "kernel launch");
  if (synchronous()) check(cudaStreamSynchronize(stream()), "kernel");
}

#ifndef MEDMPI_CUDA_EMULATED
void allow_shared(const void* kernel, size_t bytes) {
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
        "cudaFuncSetAttribute");
}
#endif

int device_count(const char** reason) {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  *reason = status == cudaSuccess ? "" : cudaGetErrorString(status);
  if (status != cudaSuccess) cudaGetLastError();
  return status == cudaSuccess ? count : 0;
}

std::string device_name(int device) {
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties");
  return properties.name;
}

int device() { return chosen_device.load(); }

void use_device(int device) {
  if (device == chosen_device.load()) return;
  if (device_used.load())
    throw std::runtime_error("use_device: device " + std::to_string(chosen_device.load()) +
                             " is in use already, expected the choice before the first device array");
  chosen_device.store(device);
}

Stream current_stream() { return thread_state().stream; }

void synchronize() { check(cudaStreamSynchronize(stream()), "cudaStreamSynchronize"); }

void order(Stream first, Stream then) {
  if (first == then) return;
  cudaEvent_t event = thread_state().event;
  const auto handle = [](Stream s) { return s ? static_cast<cudaStream_t>(s) : cudaStreamLegacy; };
  check(cudaEventRecord(event, handle(first)), "cudaEventRecord");
  check(cudaStreamWaitEvent(handle(then), event, 0), "cudaStreamWaitEvent");
}

Block allocate(size_t bytes, Stream stream) { return pool().take(bytes, stream); }
void release(Block block, Stream stream) noexcept { pool().give(block, stream); }
void trim() { pool().trim(); }
Statistics statistics() { return pool().statistics(); }
void reset_peak() { pool().reset_peak(); }

void* device_scratch(int slot, size_t bytes) {
  return grown(thread_state().scratch[slot], bytes, thread_state().stream);
}

void* pinned_scratch(int slot, size_t bytes) {
  ThreadState& state = thread_state();
  if (state.pinned[slot] && state.pinned_size[slot] >= bytes) return state.pinned[slot];
  if (state.pinned[slot]) {
    check(cudaStreamSynchronize(state.stream), "cudaStreamSynchronize");
    check(cudaFreeHost(state.pinned[slot]), "cudaFreeHost");
    state.pinned[slot] = nullptr;
  }
  check(cudaMallocHost(&state.pinned[slot], bytes ? bytes : 1), "cudaMallocHost");
  state.pinned_size[slot] = bytes;
  return state.pinned[slot];
}

const void* device_constant(const void* host, size_t bytes) {
  const std::lock_guard<std::mutex> lock(constants().mutex);
  const std::string content(static_cast<const char*>(host), bytes);
  auto found = constants().tables.find(content);
  if (found != constants().tables.end()) return found->second;
  const Block block = pool().take(bytes, current_stream());
  check(cudaMemcpyAsync(block.data, host, bytes, cudaMemcpyHostToDevice, stream()), "cudaMemcpyAsync");
  synchronize();  // every stream may use it from now on
  constants().tables.emplace(content, block.data);
  return block.data;
}

const void* device_upload(int slot, const void* host, size_t bytes) {
  void* to = grown(thread_state().upload[slot], bytes, thread_state().stream);
  copy_to_device(to, host, bytes);
  return to;
}

void copy_to_device(void* to, const void* from, size_t bytes) {
  if (bytes) check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream()), "cudaMemcpyAsync");
}

void copy_to_host(void* to, const void* from, size_t bytes) {
  if (bytes) check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream()), "cudaMemcpyAsync");
  synchronize();
}

void copy_on_device(void* to, const void* from, size_t bytes) {
  if (bytes) check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream()), "cudaMemcpyAsync");
}

void set_zero(void* to, size_t bytes) {
  if (bytes) check(cudaMemsetAsync(to, 0, bytes, stream()), "cudaMemsetAsync");
}

}  // namespace medmpi::cuda
