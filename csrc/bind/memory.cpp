// Where every result of a kernel lives: blocks that return to a pool when their array dies, and are handed out again
// to the next array of about that size. A training step repeats the same sizes, so in the steady state no memory is
// asked from the system and no page is touched for the first time, which costs more than the arithmetic on it.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <mutex>
#include <vector>

#include "bind/call.h"

namespace medmpi {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

class Pool {
 public:
  struct Block {
    void* data;
    size_t size;
  };

  /// A block of at least `bytes`, 64-byte aligned. The best fit is taken when it wastes less than an eighth.
  Block take(size_t bytes) {
    const size_t size = rounded(bytes);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      auto it = free_.lower_bound(size);
      if (it != free_.end() && it->first <= size + size / 8) {
        const Block block{it->second.back(), it->first};
        it->second.pop_back();
        if (it->second.empty()) free_.erase(it);
        in_use_ += block.size;
        peak_ = std::max(peak_, in_use_);
        return block;
      }
    }
    void* data = fresh(size);
    if (!data) {
      trim();
      data = fresh(size);
    }
    if (!data) throw std::bad_alloc();
    std::lock_guard<std::mutex> lock(mutex_);
    reserved_ += size;
    in_use_ += size;
    peak_ = std::max(peak_, in_use_);
    ++fresh_;
    return {data, size};
  }

  void give(Block block) {
    std::lock_guard<std::mutex> lock(mutex_);
    in_use_ -= block.size;
    free_[block.size].push_back(block.data);
  }

  /// Hands every free block back to the system.
  void trim() {
    std::lock_guard<std::mutex> lock(mutex_);
    for (auto& [size, blocks] : free_)
      for (void* data : blocks) {
        release(data, size);
        reserved_ -= size;
      }
    free_.clear();
  }

  py::dict statistics() {
    std::lock_guard<std::mutex> lock(mutex_);
    py::dict d;
    d["in_use"] = in_use_;
    d["reserved"] = reserved_;
    d["peak"] = peak_;
    d["fresh_blocks"] = fresh_;
    return d;
  }

  void reset_peak() {
    std::lock_guard<std::mutex> lock(mutex_);
    peak_ = in_use_;
  }

 private:
  static size_t rounded(size_t bytes) {
    const size_t unit = bytes >= kHugePage ? size_t{1} << 16 : bytes >= 4096 ? 4096 : 64;
    return (std::max<size_t>(bytes, 1) + unit - 1) / unit * unit;
  }
  static void* fresh(size_t size) {
    if (size < kHugePage) return std::aligned_alloc(64, size);
    void* data = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) return nullptr;
    madvise(data, size, MADV_HUGEPAGE);
    return data;
  }
  static void release(void* data, size_t size) {
    if (size < kHugePage)
      std::free(data);
    else
      munmap(data, size);
  }

  std::mutex mutex_;
  std::map<size_t, std::vector<void*>> free_;
  size_t in_use_ = 0, reserved_ = 0, peak_ = 0, fresh_ = 0;
};

/// Never destroyed: arrays may outlive the module.
Pool& pool() {
  static Pool* instance = new Pool;
  return *instance;
}

py::array empty(const std::vector<py::ssize_t>& shape, const py::dtype& dtype) {
  const auto item = static_cast<size_t>(dtype.itemsize());
  size_t bytes = item;
  for (py::ssize_t extent : shape) {
    if (extent < 0) throw py::value_error("empty: shape has a negative size, expected sizes >= 0");
    const auto n = static_cast<size_t>(extent);
    if (n && bytes > (size_t{1} << 62) / n) throw py::value_error("empty: shape is too large for memory");
    bytes *= n;
  }
  auto* block = new Pool::Block(pool().take(bytes));
  py::capsule owner(block, [](void* p) {
    auto* mine = static_cast<Pool::Block*>(p);
    pool().give(*mine);
    delete mine;
  });
  return py::array(dtype, shape, block->data, owner);
}

}  // namespace

void bind_memory(py::module_& m) {
  m.def("empty", &empty, py::arg("shape"), py::arg("dtype"));
  m.def("memory_statistics", [] { return pool().statistics(); });
  m.def("reset_peak_memory", [] { pool().reset_peak(); });
  m.def("trim_memory", [] { pool().trim(); });
}

}  // namespace medmpi
