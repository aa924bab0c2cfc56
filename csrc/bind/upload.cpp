// Page-locked arrays, and copies of them to the device beside its work.
#include "cuda/upload.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <deque>

#include "bind/device_array.h"

namespace medmpi {
namespace {

py::array pinned_empty(const std::vector<py::ssize_t>& shape, const py::dtype& dtype) {
  size_t bytes = static_cast<size_t>(dtype.itemsize());
  for (py::ssize_t extent : shape) {
    if (extent < 0) throw py::value_error("pinned_empty: shape has a negative size, expected sizes >= 0");
    bytes *= static_cast<size_t>(extent);
  }
  auto* block = new cuda::Block;
  py::capsule owner(block, [](void* p) {
    auto* b = static_cast<cuda::Block*>(p);
    if (b->data) cuda::pinned_release(*b);
    delete b;
  });
  {
    const py::gil_scoped_release nogil;
    *block = cuda::pinned_allocate(bytes);
  }
  return py::array(dtype, shape, block->data, owner);
}

/// The stream, and the arrays that it still reads.
class Uploads {
 public:
  void send(const py::array& host, const DeviceArray& out) {
    const std::vector<py::ssize_t> shape(host.shape(), host.shape() + host.ndim());
    const ElementType& type = element_type("send: host", host.dtype());
    if (shape != out.shape() || &type != &out.type())
      throw py::value_error("send: host has shape " + shape_text(shape) + " and dtype " + type.name + ", expected " +
                            shape_text(out.shape()) + " and " + out.type().name + ", those of out");
    if (!(host.flags() & py::array::c_style) || !cuda::is_pinned(host.data()))
      throw py::type_error("send: host is not page-locked and C-contiguous, expected an array of pinned_empty");
    forget(0);
    out.memory()->begin_use(stream_.stream());
    read_.push_back({stream_.copy(out.data(), host.data(), out.bytes()), host});
  }
  /// Waits for all copies so far.
  void finish() {
    if (!read_.empty()) forget(read_.back().copy);
  }

 private:
  struct Read {
    uint64_t copy;
    py::object host;
  };

  void forget(uint64_t least) {
    uint64_t done = 0;
    {
      const py::gil_scoped_release nogil;
      done = stream_.done(least);
    }
    while (!read_.empty() && read_.front().copy <= done) read_.pop_front();
  }

  std::deque<Read> read_;
  cuda::CopyStream stream_;  // ends first, and waits for what it reads
};

}  // namespace

void bind_upload(py::module_& m) {
  m.def("pinned_empty", &pinned_empty, py::arg("shape"), py::arg("dtype"));
  py::class_<Uploads>(m, "Uploads", "Copies of page-locked arrays to a device, beside its other work.")
      .def(py::init<>())
      .def("send", &Uploads::send, py::arg("host"), py::arg("out"))
      .def("finish", &Uploads::finish);
}

}  // namespace medmpi
