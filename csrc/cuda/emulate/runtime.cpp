// Emulated streams, events, graphs, errors and the device's properties.
#include <atomic>
#include <chrono>
#include <map>
#include <mutex>
#include <vector>

#include "cuda/emulate/cuda_runtime.h"
#include "cuda/emulate/device.h"

namespace medmpi::emulate {

struct Graph {
  std::vector<std::function<void()>> work;
};
struct Stream {
  Graph* graph = nullptr;  // that it is captured into
  bool origin = false;     // capture began here
  bool spoilt = false;
};
struct Event {
  Graph* graph = nullptr;  // of the capture in which it was recorded
  bool recorded = false;
  std::chrono::steady_clock::time_point time;
};

namespace {

constexpr size_t kShared = 48 << 10, kSharedMost = 227 << 10;
constexpr int kProcessors = 2;  // few, so that grid-stride loops turn more than once

std::mutex lock;
std::vector<Stream*> captured;
std::map<const void*, size_t> shared_allowed;
std::string failure;
std::atomic<bool> failed{false};
thread_local cudaError_t last = cudaSuccess;
thread_local int allowed = 0;

}  // namespace

CaptureAllowed::CaptureAllowed() { ++allowed; }
CaptureAllowed::~CaptureAllowed() { --allowed; }

bool is_capturing(cudaStream_t stream) { return stream && stream->graph; }

bool refuse_in_capture() {
  if (allowed) return false;
  const std::lock_guard<std::mutex> guard(lock);
  for (Stream* s : captured) s->spoilt = true;
  return !captured.empty();
}

cudaError_t set_error(cudaError_t error) {
  if (error != cudaSuccess) last = error;
  return error;
}

void fail(const std::string& what) {
  const std::lock_guard<std::mutex> guard(lock);
  if (!failed) failure = "emulation: " + what;
  failed = true;
  last = cudaErrorLaunchFailure;
}

cudaError_t enqueue(cudaStream_t stream, std::function<void()> work) {
  if (failed) return set_error(cudaErrorLaunchFailure);
  if (is_capturing(stream)) {
    stream->graph->work.push_back(std::move(work));
    return cudaSuccess;
  }
  work();
  return cudaSuccess;
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

namespace {
cudaError_t wait() {
  if (refuse_in_capture()) return set_error(cudaErrorStreamCaptureUnsupported);
  return failed ? set_error(cudaErrorLaunchFailure) : cudaSuccess;
}
}  // namespace
cudaError_t cudaDeviceSynchronize() { return wait(); }
cudaError_t cudaDeviceReset() { return wait(); }

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = new Stream;
  return cudaSuccess;
}
cudaError_t cudaStreamCreate(cudaStream_t* stream) { return cudaStreamCreateWithFlags(stream, 0); }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int) {
  return cudaStreamCreateWithFlags(stream, flags);
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  delete stream;
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  if (!is_capturing(stream)) return failed ? set_error(cudaErrorLaunchFailure) : cudaSuccess;
  stream->spoilt = true;
  return set_error(cudaErrorStreamCaptureUnsupported);
}
cudaError_t cudaStreamQuery(cudaStream_t stream) { return cudaStreamSynchronize(stream); }

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  if (!stream || stream->graph) return set_error(cudaErrorStreamCaptureUnsupported);
  const std::lock_guard<std::mutex> guard(lock);
  stream->graph = new Graph;
  stream->origin = true;
  stream->spoilt = false;
  if (mode != cudaStreamCaptureModeRelaxed) captured.push_back(stream);
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  *graph = nullptr;
  if (!is_capturing(stream) || !stream->origin) return set_error(cudaErrorInvalidValue);
  const std::lock_guard<std::mutex> guard(lock);
  for (size_t i = 0; i < captured.size(); ++i)
    if (captured[i] == stream) captured.erase(captured.begin() + static_cast<std::ptrdiff_t>(i));
  Graph* g = stream->graph;
  stream->graph = nullptr;
  stream->origin = false;
  if (stream->spoilt) {
    delete g;
    return set_error(cudaErrorStreamCaptureInvalidated);
  }
  *graph = g;
  return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  *status = !is_capturing(stream) ? cudaStreamCaptureStatusNone
            : stream->spoilt      ? cudaStreamCaptureStatusInvalidated
                                  : cudaStreamCaptureStatusActive;
  return cudaSuccess;
}
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* data) {
  return enqueue(stream, [=] { function(data); });
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = new Event;
  return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, 0); }
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  event->graph = is_capturing(stream) ? stream->graph : nullptr;
  event->recorded = true;
  event->time = std::chrono::steady_clock::now();
  return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t event) { return cudaEventSynchronize(event); }
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  if (event->graph) return set_error(cudaErrorStreamCaptureUnsupported);
  return failed ? set_error(cudaErrorLaunchFailure) : cudaSuccess;
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end) {
  if (!begin->recorded || !end->recorded) return set_error(cudaErrorInvalidResourceHandle);
  *milliseconds = std::chrono::duration<float, std::milli>(end->time - begin->time).count();
  return cudaSuccess;
}
/// A stream that waits for an event of a captured one is captured with it; one that is captured too joins it.
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  if (!event->graph || !stream || stream->origin) return cudaSuccess;
  stream->graph = event->graph;
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  *exec = new Graph(*graph);
  return cudaSuccess;
}
cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t) { return cudaSuccess; }
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  if (is_capturing(stream)) return set_error(cudaErrorStreamCaptureUnsupported);
  for (const auto& work : exec->work) {
    if (failed) break;
    work();
  }
  return failed ? set_error(cudaErrorLaunchFailure) : cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  delete exec;
  return cudaSuccess;
}
