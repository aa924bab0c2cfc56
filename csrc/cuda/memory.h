#pragma once
// The device as the rest of the program sees it, without CUDA's headers: one device for a process, one stream for each
// host thread, and memory that is kept for reuse. Every function raises std::runtime_error with the CUDA call and its
// status, and where no CUDA was built in with that as its reason.
#include <cstddef>
#include <cstdint>
#include <string>

namespace medmpi::cuda {

/// cudaStream_t. Three numbers of CUDA's are streams too: 0 and 1 the legacy default stream, 2 the thread's default.
using Stream = void*;

/// Number of devices; 0 with a reason where there is no driver.
int device_count(const char** reason);
/// What a device calls itself; an emulated one says so.
std::string device_name(int device);
/// The device of this process: 0 until use_device, which has to come before any memory is taken.
int device();
void use_device(int device);

/// The calling thread's stream. It does not wait for the legacy default stream, nor that one for it.
Stream current_stream();
/// Waits until the calling thread's stream has done all its work; raises what went wrong in it.
void synchronize();
/// Lets `then` wait, on the device, for all that `first` has been given so far.
void order(Stream first, Stream then);

/// Memory for use on `stream`, aligned to 512 bytes, at least `bytes` long. Freed blocks are kept and handed out again,
/// to the same stream, so that no block is written while work before it still reads it. std::runtime_error with
/// the sizes where the device, or the cap of MEDMPI_DEVICE_MEMORY (bytes, or with K, M or G), has no more.
struct Block {
  void* data = nullptr;
  size_t size = 0;
  uint64_t home = 0;  // of graphs' memory (graph.h), which it then never leaves
};
Block allocate(size_t bytes, Stream stream);
void release(Block block, Stream stream) noexcept;
/// Hands free blocks back to the device.
void trim();

struct Statistics {
  size_t in_use, reserved, peak, cap;  // bytes; cap is 0 where there is none
};
Statistics statistics();
void reset_peak();

/// Scratch of the calling thread in device memory: as medmpi::scratch on the host. Work on the thread's stream uses one
/// call's scratch after the other's.
void* device_scratch(int slot, size_t bytes);
/// A device copy of a small table in host memory that follows from an operation's sizes or options (filter taps, the
/// windows of a pooling axis): found by its content, made once and kept. Not for tables that differ from call to call.
const void* device_constant(const void* host, size_t bytes);
/// A device copy of a small host table that differs from call to call, valid until the slot's next use by this thread.
const void* device_upload(int slot, const void* host, size_t bytes);

/// Copies on the calling thread's stream. The first returns when `from` may be written again, the second when `to` is
/// there, the third at once.
void copy_to_device(void* to, const void* from, size_t bytes);
void copy_to_host(void* to, const void* from, size_t bytes);
void copy_on_device(void* to, const void* from, size_t bytes);
void set_zero(void* to, size_t bytes);

}  // namespace medmpi::cuda
