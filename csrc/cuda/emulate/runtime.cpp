// The emulated device's properties, errors and launches.
#include <atomic>
#include <map>
#include <mutex>

#include "cuda/emulate/cuda_runtime.h"
#include "cuda/emulate/device.h"

namespace medmpi::emulate {

namespace {

constexpr size_t kShared = 48 << 10, kSharedMost = 227 << 10;
constexpr int kProcessors = 2;  // few, so that grid-stride loops turn more than once

std::mutex lock;
std::map<const void*, size_t> shared_allowed;
std::string failure;
std::atomic<bool> failed{false};
thread_local cudaError_t last = cudaSuccess;
}  // namespace

cudaError_t set_error(cudaError_t error) {
  if (error != cudaSuccess) last = error;
  return error;
}

bool has_failed() { return failed; }

void fail(const std::string& what) {
  const std::lock_guard<std::mutex> guard(lock);
  if (!failed) failure = "emulation: " + what;
  failed = true;
  last = cudaErrorLaunchFailure;
}

cudaError_t allow_shared(const void* kernel, size_t bytes) {
  if (bytes > kSharedMost) return set_error(cudaErrorInvalidValue);
  const std::lock_guard<std::mutex> guard(lock);
  shared_allowed[kernel] = bytes;
  return cudaSuccess;
}

cudaError_t refuse_pointer(int argument) {
  fail("kernel argument " + std::to_string(argument) + " points to host memory");
  return cudaErrorLaunchFailure;
}

cudaError_t enqueue_kernel(const void* kernel, dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                           std::function<void()> body) {
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  size_t most = kShared;
  {
    const std::lock_guard<std::mutex> guard(lock);
    const auto it = shared_allowed.find(kernel);
    if (it != shared_allowed.end() && it->second > most) most = it->second;
  }
  if (!threads || threads > 1024 || block.z > 64 || !grid.x || !grid.y || !grid.z || grid.x > 0x7fffffffu ||
      grid.y > 65535 || grid.z > 65535)
    return set_error(cudaErrorInvalidConfiguration);
  if (shared_bytes > most) return set_error(cudaErrorInvalidValue);
  return enqueue(stream, [=] {
    const Working open;
    const char* error = run_grid({grid.x, grid.y, grid.z}, {block.x, block.y, block.z}, shared_bytes, body);
    if (*error) fail(error);
  });
}

void copy_to_symbol(void* symbol, const void* from, size_t bytes, size_t offset, cudaStream_t stream) {
  enqueue(stream, [=] {
    const Working open;
    std::memcpy(static_cast<char*>(symbol) + offset, from, bytes);
  });
}

}  // namespace medmpi::emulate

using namespace medmpi::emulate;

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidConfiguration:
      return "cudaErrorInvalidConfiguration";
    case cudaErrorInvalidDevicePointer:
      return "cudaErrorInvalidDevicePointer";
    case cudaErrorNoDevice:
      return "cudaErrorNoDevice";
    case cudaErrorInvalidDevice:
      return "cudaErrorInvalidDevice";
    case cudaErrorInvalidResourceHandle:
      return "cudaErrorInvalidResourceHandle";
    case cudaErrorNotReady:
      return "cudaErrorNotReady";
    case cudaErrorIllegalAddress:
      return "cudaErrorIllegalAddress";
    case cudaErrorLaunchFailure:
      return "cudaErrorLaunchFailure";
    case cudaErrorNotSupported:
      return "cudaErrorNotSupported";
    case cudaErrorStreamCaptureUnsupported:
      return "cudaErrorStreamCaptureUnsupported";
    case cudaErrorStreamCaptureIsolation:
      return "cudaErrorStreamCaptureIsolation";
    case cudaErrorStreamCaptureInvalidated:
      return "cudaErrorStreamCaptureInvalidated";
  }
  return "unknown error";
}
const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchFailure:
      return failure.empty() ? "unspecified launch failure" : failure.c_str();
    default:
      return cudaGetErrorName(error);
  }
}
/// A failed kernel is forgotten here, unlike on a device, so that one broken test does not break the next.
cudaError_t cudaGetLastError() {
  const cudaError_t error = failed.exchange(false) ? cudaErrorLaunchFailure : last;
  last = cudaSuccess;
  return error;
}
cudaError_t cudaPeekAtLastError() { return failed ? cudaErrorLaunchFailure : last; }

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) { return device ? set_error(cudaErrorInvalidDevice) : cudaSuccess; }
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int device) {
  if (device) return set_error(cudaErrorInvalidDevice);
  *p = {};
  std::strcpy(p->name, "CUDA emulation on the CPU");
  size_t free;
  cudaMemGetInfo(&free, &p->totalGlobalMem);
  p->sharedMemPerBlock = kShared;
  p->sharedMemPerBlockOptin = kSharedMost;
  p->sharedMemPerMultiprocessor = 228 << 10;
  p->regsPerBlock = 65536;
  p->warpSize = 32;
  p->maxThreadsPerBlock = 1024;
  p->maxThreadsPerMultiProcessor = 2048;
  p->maxBlocksPerMultiProcessor = 32;
  p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
  p->maxThreadsDim[2] = 64;
  p->maxGridSize[0] = 0x7fffffff;
  p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  p->major = 9;
  p->multiProcessorCount = kProcessors;
  p->l2CacheSize = 50 << 20;
  p->memoryBusWidth = 64;
  p->asyncEngineCount = p->concurrentKernels = p->unifiedAddressing = 1;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  cudaDeviceProp p;
  if (device) return set_error(cudaErrorInvalidDevice);
  cudaGetDeviceProperties(&p, device);
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
      *value = p.maxThreadsPerBlock;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      *value = static_cast<int>(p.sharedMemPerBlock);
      break;
    case cudaDevAttrWarpSize:
      *value = 32;
      break;
    case cudaDevAttrMultiProcessorCount:
      *value = p.multiProcessorCount;
      break;
    case cudaDevAttrClockRate:
    case cudaDevAttrMemoryClockRate:
      *value = 1000000;
      break;
    case cudaDevAttrGlobalMemoryBusWidth:
      *value = p.memoryBusWidth;
      break;
    case cudaDevAttrL2CacheSize:
      *value = p.l2CacheSize;
      break;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      *value = p.maxThreadsPerMultiProcessor;
      break;
    case cudaDevAttrComputeCapabilityMajor:
      *value = p.major;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *value = p.minor;
      break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = static_cast<int>(p.sharedMemPerMultiprocessor);
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = static_cast<int>(p.sharedMemPerBlockOptin);
      break;
    case cudaDevAttrMemoryPoolsSupported:
      *value = 1;
      break;
  }
  return cudaSuccess;
}
cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  *least = *greatest = 0;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetPCIBusId(char* text, int length, int) {
  std::snprintf(text, static_cast<size_t>(length), "0000:00:00.0");
  return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) { return cudaDriverGetVersion(version); }
