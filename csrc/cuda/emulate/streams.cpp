// Emulated streams, events and graphs.
#include <algorithm>
#include <chrono>
#include <deque>
#include <mutex>
#include <thread>
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
  cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
  std::thread::id by;                       // who captures it
  std::deque<std::function<void()>> later;  // work that has to wait: a copy of page-locked memory, and all behind it
  uint64_t given = 0, done = 0;             // pieces of such work
};
struct Event {
  Graph* graph = nullptr;  // of the capture in which it was recorded
  bool recorded = false;
  Stream* stream = nullptr;
  uint64_t after = 0;  // pieces of the stream's late work
  std::chrono::steady_clock::time_point time;
};

namespace {

std::mutex lock;
std::recursive_mutex queues;  // of late work
std::vector<Stream*> streams, captured;
thread_local cudaStreamCaptureMode own_mode = cudaStreamCaptureModeGlobal;

/// Does the stream's late work up to a number of pieces.
void catch_up(Stream* stream, uint64_t after) {
  const std::lock_guard<std::recursive_mutex> guard(queues);
  while (stream && stream->done < after) {
    const auto work = std::move(stream->later.front());
    stream->later.pop_front();
    if (!has_failed()) work();
    ++stream->done;
  }
}
bool is_late(const Stream* stream) {
  const std::lock_guard<std::recursive_mutex> guard(queues);
  return stream && stream->done < stream->given;
}

}  // namespace

bool is_capturing(cudaStream_t stream) { return stream && stream->graph; }

bool refuse_in_capture() {
  if (own_mode == cudaStreamCaptureModeRelaxed) return false;
  const std::lock_guard<std::mutex> guard(lock);
  bool refused = false;
  for (Stream* s : captured)
    if (s->mode == cudaStreamCaptureModeGlobal || s->by == std::this_thread::get_id()) refused = s->spoilt = true;
  return refused;
}

cudaError_t enqueue(cudaStream_t stream, std::function<void()> work, bool late) {
  if (has_failed()) return set_error(cudaErrorLaunchFailure);
  if (is_capturing(stream)) {
    stream->graph->work.push_back(std::move(work));
    return cudaSuccess;
  }
  const std::lock_guard<std::recursive_mutex> guard(queues);
  if (stream && (late || stream->done < stream->given)) {
    stream->later.push_back(std::move(work));
    ++stream->given;
    return cudaSuccess;
  }
  work();
  return cudaSuccess;
}

void catch_up(cudaStream_t stream) {
  if (stream) catch_up(stream, stream->given);
}
void catch_up_all() {
  std::vector<Stream*> all;
  {
    const std::lock_guard<std::mutex> guard(lock);
    all = streams;
  }
  for (Stream* stream : all) catch_up(stream);
}

}  // namespace medmpi::emulate

using namespace medmpi::emulate;

namespace {
cudaError_t wait() {
  if (refuse_in_capture()) return set_error(cudaErrorStreamCaptureUnsupported);
  catch_up_all();
  return has_failed() ? set_error(cudaErrorLaunchFailure) : cudaSuccess;
}
}  // namespace
cudaError_t cudaDeviceSynchronize() { return wait(); }
cudaError_t cudaDeviceReset() { return wait(); }

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = new Stream;
  const std::lock_guard<std::mutex> guard(lock);
  streams.push_back(*stream);
  return cudaSuccess;
}
cudaError_t cudaStreamCreate(cudaStream_t* stream) { return cudaStreamCreateWithFlags(stream, 0); }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int) {
  return cudaStreamCreateWithFlags(stream, flags);
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  catch_up(stream);
  const std::lock_guard<std::mutex> guard(lock);
  streams.erase(std::find(streams.begin(), streams.end(), stream));
  delete stream;
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  if (is_capturing(stream)) {
    stream->spoilt = true;
    return set_error(cudaErrorStreamCaptureUnsupported);
  }
  catch_up(stream);
  return has_failed() ? set_error(cudaErrorLaunchFailure) : cudaSuccess;
}
/// Work gets done when somebody has asked whether it is.
cudaError_t cudaStreamQuery(cudaStream_t stream) {
  const bool late = is_late(stream);
  const cudaError_t status = cudaStreamSynchronize(stream);
  return status == cudaSuccess && late ? cudaErrorNotReady : status;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  if (!stream || stream->graph) return set_error(cudaErrorStreamCaptureUnsupported);
  const std::lock_guard<std::mutex> guard(lock);
  stream->graph = new Graph;
  stream->origin = true;
  stream->spoilt = false;
  stream->mode = mode;
  stream->by = std::this_thread::get_id();
  if (mode != cudaStreamCaptureModeRelaxed) captured.push_back(stream);
  return cudaSuccess;
}
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  std::swap(*mode, own_mode);
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
  event->stream = stream;
  event->after = stream ? stream->given : 0;
  event->time = std::chrono::steady_clock::now();
  return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  const bool late = event->stream && event->stream->done < event->after;
  const cudaError_t status = cudaEventSynchronize(event);
  return status == cudaSuccess && late ? cudaErrorNotReady : status;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  if (event->graph) return set_error(cudaErrorStreamCaptureUnsupported);
  catch_up(event->stream, event->after);
  return has_failed() ? set_error(cudaErrorLaunchFailure) : cudaSuccess;
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end) {
  if (!begin->recorded || !end->recorded) return set_error(cudaErrorInvalidResourceHandle);
  *milliseconds = std::chrono::duration<float, std::milli>(end->time - begin->time).count();
  return cudaSuccess;
}
/// A stream that waits for an event of a captured one is captured with it; one that is captured too joins it.
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  Stream* const other = event->stream;
  if (is_capturing(stream) && !event->graph && event->recorded) {
    stream->spoilt = true;
    return set_error(cudaErrorStreamCaptureIsolation);
  }
  if (event->graph && stream && !stream->origin) stream->graph = event->graph;
  if (event->graph || !other || other == stream) return cudaSuccess;
  const uint64_t after = event->after;
  if (other->done < after) enqueue(stream, [=] { catch_up(other, after); }, true);
  return cudaSuccess;
}

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t*, size_t* count) {
  *count = graph->work.size();
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  *exec = new Graph(*graph);
  return cudaSuccess;
}
cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t) { return cudaSuccess; }
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  if (is_capturing(stream)) return set_error(cudaErrorStreamCaptureUnsupported);
  enqueue(stream, [=] {
    for (const auto& work : exec->work)
      if (!has_failed()) work();
  });
  return has_failed() ? set_error(cudaErrorLaunchFailure) : cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  catch_up_all();
  delete exec;
  return cudaSuccess;
}
