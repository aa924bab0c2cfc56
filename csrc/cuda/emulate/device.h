#pragma once
// What the parts of the emulated runtime share.
#include <functional>
#include <string>

#include "cuda/emulate/cuda_runtime.h"

namespace medmpi::emulate {

/// While it lives this thread works on the device, whose memory opens to it.
class Working {
 public:
  Working();
  ~Working();
  Working(const Working&) = delete;
  Working& operator=(const Working&) = delete;
};

/// While it lives allocations are allowed although a stream is captured.
class CaptureAllowed {
 public:
  CaptureAllowed();
  ~CaptureAllowed();
  CaptureAllowed(const CaptureAllowed&) = delete;
  CaptureAllowed& operator=(const CaptureAllowed&) = delete;
};

bool is_device(const void* p);
bool is_capturing(cudaStream_t stream);
/// Whether some stream is captured, which then is spoilt: the call waits for the device or allocates.
bool refuse_in_capture();

/// Keeps the error for cudaGetLastError and returns it.
cudaError_t set_error(cudaError_t error);
/// A kernel failed: all that follows fails too, as on a device.
void fail(const std::string& what);

/// Runs work, or records it while the stream is captured.
cudaError_t enqueue(cudaStream_t stream, std::function<void()> work);

}  // namespace medmpi::emulate
