// Arrays in the pool's or an arena's memory, and what they take.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include "bind/arena.h"
#include "bind/call.h"

namespace medmpi {
namespace {

/// What an array owns: a block of the pool, or a place in an arena, which in any case hears of its death.
struct Owned {
  MemoryPool::Block block;
  std::shared_ptr<Arena> arena;
  Arena::Claim claim;

  explicit Owned(size_t bytes) {
    if (Arena* active = Arena::active()) {
      arena = active->shared_from_this();
      claim = arena->take(bytes);
    }
    if (!claim.data) block = memory_pool().take(bytes);
  }
  ~Owned() {
    if (block.data) memory_pool().give(block);
    if (arena) arena->give(claim);
  }
  Owned(const Owned&) = delete;
  Owned& operator=(const Owned&) = delete;

  void* data() const { return claim.data ? claim.data : block.data; }
};

py::array empty(const std::vector<py::ssize_t>& shape, const py::dtype& dtype) {
  const auto item = static_cast<size_t>(dtype.itemsize());
  size_t bytes = item;
  for (py::ssize_t extent : shape) {
    if (extent < 0) throw py::value_error("empty: shape has a negative size, expected sizes >= 0");
    const auto n = static_cast<size_t>(extent);
    if (n && bytes > (size_t{1} << 62) / n) throw py::value_error("empty: shape is too large for memory");
    bytes *= n;
  }
  auto* owned = new Owned(bytes);
  py::capsule owner(owned, [](void* p) { delete static_cast<Owned*>(p); });
  return py::array(dtype, shape, owned->data(), owner);
}

py::dict statistics() {
  const auto now = memory_pool().statistics();
  py::dict d;
  d["in_use"] = now.in_use;
  d["reserved"] = now.reserved;
  d["peak"] = now.peak;
  d["fresh_blocks"] = now.fresh_blocks;
  return d;
}

}  // namespace

void bind_memory(py::module_& m) {
  m.def("empty", &empty, py::arg("shape"), py::arg("dtype"));
  m.def("memory_statistics", &statistics);
  m.def("reset_peak_memory", [] { memory_pool().reset_peak(); });
  m.def("trim_memory", [] { memory_pool().trim(); });
  py::class_<Arena, std::shared_ptr<Arena>>(
      m, "Arena", "Plans the memory of the arrays that a with block makes, when it is run again and again.")
      .def(py::init<>())
      .def("__enter__",
           [](const std::shared_ptr<Arena>& self) {
             self->begin();
             return self;
           })
      .def("__exit__", [](Arena& self, const py::args&) { self.end(); })
      .def("nbytes", &Arena::size);
}

}  // namespace medmpi
