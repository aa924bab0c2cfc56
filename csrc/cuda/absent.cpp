// memory.h where no CUDA was built in.
#include <stdexcept>

#include "cuda/memory.h"

namespace medmpi::cuda {
namespace {

[[noreturn]] void absent() { throw std::runtime_error("this build of medmpi has no CUDA backend"); }

}  // namespace

int device_count(const char** reason) {
  *reason = "built without CUDA";
  return 0;
}
std::string device_name(int) { absent(); }
int device() { return 0; }
void use_device(int) { absent(); }
Stream current_stream() { absent(); }
void synchronize() { absent(); }
void order(Stream, Stream) { absent(); }
Block allocate(size_t, Stream) { absent(); }
void release(Block, Stream) noexcept {}
void trim() { absent(); }
Statistics statistics() { return {}; }
void reset_peak() { absent(); }
void* device_scratch(int, size_t) { absent(); }
void* pinned_scratch(int, size_t) { absent(); }
const void* device_constant(const void*, size_t) { absent(); }
const void* device_upload(int, const void*, size_t) { absent(); }
void copy_to_device(void*, const void*, size_t) { absent(); }
void copy_to_host(void*, const void*, size_t) { absent(); }
void copy_on_device(void*, const void*, size_t) { absent(); }
void set_zero(void*, size_t) { absent(); }

}  // namespace medmpi::cuda
