// memory.h, graph.h and upload.h where no CUDA was built in.
#include <stdexcept>

#include "cuda/graph.h"
#include "cuda/memory.h"
#include "cuda/upload.h"

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
const void* device_constant(const void*, size_t) { absent(); }
const void* device_upload(int, const void*, size_t) { absent(); }
void copy_to_device(void*, const void*, size_t) { absent(); }
void copy_to_host(void*, const void*, size_t) { absent(); }
void copy_on_device(void*, const void*, size_t) { absent(); }
void set_zero(void*, size_t) { absent(); }
GraphMemory::GraphMemory() { absent(); }
GraphMemory::~GraphMemory() = default;
Graph* Graph::capturing() { return nullptr; }
Graph::~Graph() = default;
void Graph::begin() { absent(); }
void Graph::end() { absent(); }
void Graph::abandon() noexcept {}
void Graph::launch() { absent(); }
void* Graph::scratch(int, size_t) { absent(); }
void* Graph::stop() { absent(); }
void refuse_in_capture(const char*) {}
Block pinned_allocate(size_t) { absent(); }
void pinned_release(Block) noexcept {}
bool is_pinned(const void*) { return false; }
CopyStream::CopyStream() { absent(); }
CopyStream::~CopyStream() = default;
uint64_t CopyStream::copy(void*, const void*, size_t) { absent(); }
uint64_t CopyStream::done(uint64_t) { absent(); }

}  // namespace medmpi::cuda
