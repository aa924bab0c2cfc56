// Devices, streams, scratch and copies.
#include <cuda_runtime.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <stdexcept>
#include <vector>

#include "cuda/device_pool.h"
#include "cuda/graph.h"
#include "cuda/launch.cuh"
#include "cuda/memory.h"
#include "cuda/upload.h"

namespace medmpi::cuda {
namespace {

constexpr int kSlots = 16;

std::atomic<int> chosen_device{0};
std::atomic<bool> device_used{false};

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
      if (scratch[i].data) device_pool().give(scratch[i], stream);
      if (upload[i].data) device_pool().give(upload[i], stream);
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
  if (block.data) device_pool().give(block, on);
  block = {};
  block = device_pool().take(bytes, on);
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
  if (synchronous() && !Graph::capturing()) check(cudaStreamSynchronize(stream()), "kernel");
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

void synchronize() {
  refuse_in_capture("a wait for the device");
  check(cudaStreamSynchronize(stream()), "cudaStreamSynchronize");
}

void order(Stream first, Stream then) {
  if (first == then) return;
  refuse_in_capture("the use of an array that was last used elsewhere");
  cudaEvent_t event = thread_state().event;
  const auto handle = [](Stream s) { return s ? static_cast<cudaStream_t>(s) : cudaStreamLegacy; };
  check(cudaEventRecord(event, handle(first)), "cudaEventRecord");
  check(cudaStreamWaitEvent(handle(then), event, 0), "cudaStreamWaitEvent");
}

Block allocate(size_t bytes, Stream stream) {
  const Graph* graph = Graph::capturing();
  return device_pool().take(bytes, stream, graph ? graph->memory()->home() : 0);
}
void release(Block block, Stream stream) noexcept { device_pool().give(block, stream); }
void trim() { device_pool().trim(); }
Statistics statistics() { return device_pool().statistics(); }
void reset_peak() { device_pool().reset_peak(); }

void* device_scratch(int slot, size_t bytes) {
  if (Graph* graph = Graph::capturing()) return graph->scratch(slot, bytes);
  return grown(thread_state().scratch[slot], bytes, thread_state().stream);
}

const void* device_constant(const void* host, size_t bytes) {
  const std::lock_guard<std::mutex> lock(constants().mutex);
  const std::string content(static_cast<const char*>(host), bytes);
  auto found = constants().tables.find(content);
  if (found != constants().tables.end()) return found->second;
  refuse_in_capture("the upload of a table; do what is captured once before");
  const Block block = device_pool().take(bytes, current_stream());
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
  refuse_in_capture("a copy from host memory");
  if (bytes) check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream()), "cudaMemcpyAsync");
  if (is_pinned(from)) synchronize();  // of other memory the driver has a copy by now
}

void copy_to_host(void* to, const void* from, size_t bytes) {
  refuse_in_capture("a copy to host memory");
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
