// Emulated device memory. Every allocation lies in a range of addresses of its own, ends (to 16 bytes) where a page
// without access begins, and starts out as NaN. Freed ranges lose their access and are not soon used again. The host
// has no access either: memory opens, allocation by allocation, while a kernel or a copy runs (in the handler of
// SIGSEGV, at the first touch) and is closed again behind it.
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <deque>
#include <map>
#include <mutex>

#include "cuda/emulate/cuda_runtime.h"
#include "cuda/emulate/device.h"

namespace medmpi::emulate {
namespace {

constexpr size_t kPage = 4096;
constexpr size_t kReserve = size_t{1} << 40;
constexpr size_t kTotal = size_t{4} << 30;  // what the device pretends to have
constexpr size_t kQuarantine = 512;         // freed ranges that wait before they are used again

struct Range {
  char* begin;   // page
  size_t pages;  // bytes of whole pages
  char* data;
  size_t bytes;
};

std::recursive_mutex lock;  // one piece of work at a time
std::map<char*, Range> ranges;
std::map<char*, size_t> page_locked;
struct Freed {
  char* begin;
  size_t pages;
};
std::deque<Freed> freed;
char *reserve = nullptr, *next = nullptr;
size_t used = 0;

// The handler may not touch containers: what is open is a plain array.
volatile int working = 0;
Range* opened[4096];
volatile int opened_count = 0;
struct sigaction before;

size_t whole_pages(size_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }

const Range* find(const void* p) {
  auto* at = static_cast<char*>(const_cast<void*>(p));
  auto it = ranges.upper_bound(at);
  if (it == ranges.begin()) return nullptr;
  --it;
  return at < it->second.data + (it->second.bytes ? it->second.bytes : 1) && at >= it->second.data ? &it->second
                                                                                                   : nullptr;
}

void print(const char* text) {
  if (write(2, text, std::strlen(text)) < 0) return;
}

void report(const char* at) {
  char text[512];
  if (!working) {
    print("\nCUDA emulation: the host touches device memory outside a copy\n");
    return;
  }
  const Range* near = nullptr;
  for (const auto& r : ranges)
    if (!near || r.second.begin - kPage <= at) near = &r.second;
  const long behind = near ? static_cast<long>(at - near->data) : 0;
  const char* who = current ? "a kernel" : "a copy";
  std::snprintf(
      text, sizeof text,
      "\nCUDA emulation: %s touches memory that is not allocated, byte %ld of the nearest allocation of %zu\n", who,
      behind, near ? near->bytes : size_t{0});
  print(text);
  if (current) {
    std::snprintf(text, sizeof text, "  thread (%u,%u,%u) of block (%u,%u,%u)\n", current->thread.x, current->thread.y,
                  current->thread.z, current->block.x, current->block.y, current->block.z);
    print(text);
  }
}

void on_fault(int signal, siginfo_t* info, void* context) {
  auto* at = static_cast<char*>(info->si_addr);
  if (reserve && at >= reserve && at < reserve + kReserve) {
    if (working) {
      auto it = ranges.upper_bound(at);
      if (it != ranges.begin()) {
        --it;
        Range& r = it->second;
        const int count = opened_count;
        if (at >= r.begin && at < r.begin + r.pages && count < 4096) {
          mprotect(r.begin, r.pages, PROT_READ | PROT_WRITE);
          opened[count] = &r;
          opened_count = count + 1;
          return;
        }
      }
    }
    report(at);
  }
  if (before.sa_flags & SA_SIGINFO && before.sa_sigaction) {
    before.sa_sigaction(signal, info, context);
  } else if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN) {
    before.sa_handler(signal);
  } else {
    ::signal(SIGSEGV, SIG_DFL);
  }
}

void watch_faults() {
  struct sigaction now;
  sigaction(SIGSEGV, nullptr, &now);
  if (now.sa_flags & SA_SIGINFO && now.sa_sigaction == on_fault) return;
  before = now;
  struct sigaction ours{};
  ours.sa_sigaction = on_fault;
  ours.sa_flags = SA_SIGINFO | SA_NODEFER;
  sigaction(SIGSEGV, &ours, nullptr);
}

}  // namespace

Working::Working() {
  lock.lock();
  if (!working) watch_faults();
  working = working + 1;
}

Working::~Working() {
  working = working - 1;
  if (!working) {
    for (int i = 0; i < opened_count; ++i) mprotect(opened[i]->begin, opened[i]->pages, PROT_NONE);
    opened_count = 0;
  }
  lock.unlock();
}

bool is_device(const void* p) {
  return reserve && static_cast<const char*>(p) >= reserve && static_cast<const char*>(p) < reserve + kReserve;
}

void poison(void* p, size_t bytes, cudaStream_t stream, bool the_graphs) {
  if (is_capturing(stream) && !the_graphs) return;
  enqueue(stream, [=] {
    const Working open;
    std::memset(p, 0xff, bytes);
  });
}

bool kernel_may_use(const void* p) {
  if (!p || is_device(p)) return true;
  const std::lock_guard<std::recursive_mutex> guard(lock);
  auto* at = static_cast<char*>(const_cast<void*>(p));
  auto it = page_locked.upper_bound(at);
  if (it == page_locked.begin()) return false;
  --it;
  return at < it->first + it->second;
}

}  // namespace medmpi::emulate

using namespace medmpi::emulate;

cudaError_t cudaMalloc(void** p, size_t bytes) {
  *p = nullptr;
  if (refuse_in_capture()) return set_error(cudaErrorStreamCaptureUnsupported);
  if (!bytes) return cudaSuccess;
  const std::lock_guard<std::recursive_mutex> guard(lock);
  if (!reserve) {
    void* all = mmap(nullptr, kReserve, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (all == MAP_FAILED) return set_error(cudaErrorMemoryAllocation);
    reserve = next = static_cast<char*>(all);
    watch_faults();
  }
  const size_t rounded = (bytes + 15) / 16 * 16, pages = whole_pages(rounded);
  if (used + bytes > kTotal) return set_error(cudaErrorMemoryAllocation);
  char* begin = nullptr;
  if (freed.size() > kQuarantine) {
    for (auto it = freed.begin(); it != freed.end(); ++it)
      if (it->pages == pages) {
        begin = it->begin;
        freed.erase(it);
        break;
      }
  }
  if (!begin) {
    if (next + pages + 2 * kPage > reserve + kReserve) return set_error(cudaErrorMemoryAllocation);
    begin = next + kPage;
    next += pages + kPage;
  }
  if (mprotect(begin, pages, PROT_READ | PROT_WRITE)) return set_error(cudaErrorMemoryAllocation);
  std::memset(begin, 0xff, pages);
  mprotect(begin, pages, PROT_NONE);
  char* data = begin + pages - rounded;
  ranges[begin] = {begin, pages, data, bytes};
  used += bytes;
  *p = data;
  return cudaSuccess;
}

cudaError_t cudaFree(void* p) {
  if (!p) return cudaSuccess;
  if (refuse_in_capture()) return set_error(cudaErrorStreamCaptureUnsupported);
  catch_up_all();
  const Working open;
  const Range* found = find(p);
  if (!found || found->data != p) return set_error(cudaErrorInvalidValue);
  const Range r = *found;
  bool written = false;
  for (const char* at = r.begin; at < r.data; ++at) written |= static_cast<unsigned char>(*at) != 0xff;
  for (const char* at = r.data + r.bytes; at < r.begin + r.pages; ++at)
    written |= static_cast<unsigned char>(*at) != 0xff;
  if (written) {
    fail("memory just outside an allocation of " + std::to_string(r.bytes) + " bytes was written");
    return cudaErrorIllegalAddress;
  }
  for (int i = 0; i < opened_count; ++i)
    if (opened[i] == found) opened[i] = opened[opened_count - 1], opened_count = opened_count - 1;
  mprotect(r.begin, r.pages, PROT_NONE);
  madvise(r.begin, r.pages, MADV_DONTNEED);
  freed.push_back({r.begin, r.pages});
  used -= r.bytes;
  ranges.erase(r.begin);
  return cudaSuccess;
}

cudaError_t cudaMallocAsync(void** p, size_t bytes, cudaStream_t) {
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  cudaThreadExchangeStreamCaptureMode(&mode);
  const cudaError_t status = cudaMalloc(p, bytes);
  cudaThreadExchangeStreamCaptureMode(&mode);
  return status;
}
/// Memory that a captured step has used stays: the graph reads and writes it at every launch.
cudaError_t cudaFreeAsync(void* p, cudaStream_t stream) { return is_capturing(stream) ? cudaSuccess : cudaFree(p); }

cudaError_t cudaHostAlloc(void** p, size_t bytes, unsigned) {
  if (refuse_in_capture()) return set_error(cudaErrorStreamCaptureUnsupported);
  *p = std::aligned_alloc(kPage, whole_pages(bytes ? bytes : 1));
  if (!*p) return set_error(cudaErrorMemoryAllocation);
  return cudaHostRegister(*p, bytes, 0);
}
cudaError_t cudaMallocHost(void** p, size_t bytes) { return cudaHostAlloc(p, bytes, 0); }
cudaError_t cudaFreeHost(void* p) {
  if (!p) return cudaSuccess;
  catch_up_all();
  const cudaError_t status = cudaHostUnregister(p);
  if (status == cudaSuccess) std::free(p);
  return status;
}
cudaError_t cudaHostRegister(void* p, size_t bytes, unsigned) {
  const std::lock_guard<std::recursive_mutex> guard(lock);
  page_locked[static_cast<char*>(p)] = bytes ? bytes : 1;
  return cudaSuccess;
}
cudaError_t cudaHostUnregister(void* p) {
  const std::lock_guard<std::recursive_mutex> guard(lock);
  return page_locked.erase(static_cast<char*>(p)) ? cudaSuccess : set_error(cudaErrorInvalidValue);
}

namespace {

/// Whether [p, p + bytes) is all in one device allocation, or all on the host.
bool holds(const void* p, size_t bytes, bool device) {
  if (is_device(p) != device) return false;
  if (!device) return true;
  const Range* r = find(p);
  return r && static_cast<const char*>(p) + bytes <= r->data + r->bytes;
}

bool copy_fits(const void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  const bool to_device =
      kind == cudaMemcpyDefault ? is_device(to) : kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
  const bool from_device =
      kind == cudaMemcpyDefault ? is_device(from) : kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
  const std::lock_guard<std::recursive_mutex> guard(lock);
  return holds(to, bytes, to_device) && holds(from, bytes, from_device);
}

}  // namespace

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  return cudaMemcpy2DAsync(to, bytes, from, bytes, bytes, 1, kind, stream);
}

cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
                              size_t height, cudaMemcpyKind kind, cudaStream_t stream) {
  if (!width || !height) return cudaSuccess;
  if (to_pitch < width || from_pitch < width || !copy_fits(to, from, width, kind) ||
      !copy_fits(static_cast<char*>(to) + (height - 1) * to_pitch,
                 static_cast<const char*>(from) + (height - 1) * from_pitch, width, kind))
    return set_error(cudaErrorInvalidValue);
  const void* const host = !is_device(to) ? to : !is_device(from) ? from : nullptr;
  const bool late = host && kernel_may_use(host);
  // of other memory the driver makes a copy of its own, or waits
  if (host && !late && !is_capturing(stream)) catch_up(stream);
  const auto work = [=] {
    const Working open;
    for (size_t i = 0; i < height; ++i)
      std::memcpy(static_cast<char*>(to) + i * to_pitch, static_cast<const char*>(from) + i * from_pitch, width);
  };
  return enqueue(stream, work, late);
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  if (refuse_in_capture()) return set_error(cudaErrorStreamCaptureUnsupported);
  catch_up_all();
  return cudaMemcpyAsync(to, from, bytes, kind, nullptr);
}

cudaError_t cudaMemsetAsync(void* p, int value, size_t bytes, cudaStream_t stream) {
  if (!bytes) return cudaSuccess;
  {
    const std::lock_guard<std::recursive_mutex> guard(lock);
    if (!holds(p, bytes, true)) return set_error(cudaErrorInvalidValue);
  }
  return enqueue(stream, [=] {
    const Working open;
    std::memset(p, value, bytes);
  });
}
cudaError_t cudaMemset(void* p, int value, size_t bytes) {
  if (refuse_in_capture()) return set_error(cudaErrorStreamCaptureUnsupported);
  return cudaMemsetAsync(p, value, bytes, nullptr);
}

cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  *total = kTotal;
  *free = kTotal - used;
  return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* p) {
  *attributes = {};
  if (is_device(p))
    attributes->type = cudaMemoryTypeDevice;
  else
    attributes->type = p && kernel_may_use(p) ? cudaMemoryTypeHost : cudaMemoryTypeUnregistered;
  attributes->device = is_device(p) ? 0 : -1;
  attributes->devicePointer = is_device(p) ? const_cast<void*>(p) : nullptr;
  attributes->hostPointer = is_device(p) ? nullptr : const_cast<void*>(p);
  return cudaSuccess;
}

cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t* pool, int) {
  *pool = nullptr;
  return cudaSuccess;
}
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void*) { return cudaSuccess; }
cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t, cudaMemPoolAttr, void* value) {
  *static_cast<uint64_t*>(value) = used;
  return cudaSuccess;
}
cudaError_t cudaMemPoolTrimTo(cudaMemPool_t, size_t) { return cudaSuccess; }
