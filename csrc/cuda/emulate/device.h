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

bool is_device(const void* p);
bool is_capturing(cudaStream_t stream);
/// Whether a stream is captured by this thread, or by any in global mode; it is spoilt then: the call waits for the
/// device or allocates.
bool refuse_in_capture();

/// Keeps the error for cudaGetLastError and returns it.
cudaError_t set_error(cudaError_t error);
/// A kernel failed: all that follows fails too, as on a device.
void fail(const std::string& what);
bool has_failed();

/// Runs work, or records it while the stream is captured. Late work runs when somebody waits for it, and what is given
/// to the stream meanwhile runs behind it.
cudaError_t enqueue(cudaStream_t stream, std::function<void()> work, bool late = false);
/// Does the late work of a stream, and of all.
void catch_up(cudaStream_t stream);
void catch_up_all();

}  // namespace medmpi::emulate
