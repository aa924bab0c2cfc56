// Device arrays of other libraries as ours, and ours as theirs: the CUDA array interface (version 3) and DLPack.
#include <pybind11/stl.h>

#include "bind/device_array.h"
#include "bind/dlpack.h"
#include "ops/ops.h"

namespace medmpi {
namespace {

cuda::Stream legacy_stream() { return nullptr; }

/// A stream as CUDA's interfaces name it: a handle, or 1 and 2 for the default streams.
cuda::Stream stream_of(intptr_t number) { return number == 1 ? legacy_stream() : reinterpret_cast<void*>(number); }

/// ValueError unless the strides, in units of `unit` bytes or elements, are those of a C-contiguous array.
void check_contiguous(const std::string& at, const std::vector<py::ssize_t>& shape, const int64_t* strides,
                      int64_t unit) {
  if (!strides) return;
  for (py::ssize_t extent : shape)
    if (extent == 0) return;
  int64_t want = unit;
  for (size_t i = shape.size(); i-- > 0; want *= shape[i])
    if (shape[i] != 1 && strides[i] != want) throw py::type_error(at + " is not C-contiguous; pass a contiguous copy");
}

void check_device(const std::string& at, int device) {
  if (device != cuda::device())
    throw py::value_error(at + " is on device " + std::to_string(device) + ", expected device " +
                          std::to_string(cuda::device()) + ", which this process uses");
}

DeviceArray from_interface(const py::dict& interface, const py::object& owner, const std::string& at, bool writable) {
  const auto shape = interface["shape"].cast<std::vector<py::ssize_t>>();
  const ElementType& type = element_type(at, py::dtype(interface["typestr"].cast<std::string>()));
  const auto [address, read_only] = interface["data"].cast<std::pair<uintptr_t, bool>>();
  if (read_only && writable) throw py::type_error(at + " is read-only, expected a writable array");
  if (interface.contains("strides") && !interface["strides"].is_none()) {
    const auto strides = interface["strides"].cast<std::vector<int64_t>>();
    check_contiguous(at, shape, strides.data(), static_cast<int64_t>(type.size));
  }
  // without a stream the producer's work is taken to be in the default stream, where torch's is
  cuda::Stream stream = legacy_stream();
  if (interface.contains("stream") && !interface["stream"].is_none()) {
    const auto number = interface["stream"].cast<intptr_t>();
    if (number == 0) throw py::value_error(at + " names stream 0, which the CUDA array interface does not allow");
    stream = stream_of(number);
  }
  auto* data = reinterpret_cast<char*>(address);
  return {std::make_shared<DeviceMemory>(data, stream, owner), data, shape, type};
}

DeviceArray from_dlpack(const py::object& object, const std::string& at) {
  const auto [kind, device] = object.attr("__dlpack_device__")().cast<std::pair<int, int>>();
  check_device(at, device);
  // the producer lets our stream wait for its work; ours is awaited by the default stream
  const auto stream = reinterpret_cast<intptr_t>(cuda::current_stream());
  py::capsule capsule = object.attr("__dlpack__")(py::arg("stream") = stream);
  auto* managed = static_cast<dlpack::ManagedTensor*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"));
  if (!managed) throw py::error_already_set();
  PyCapsule_SetName(capsule.ptr(), "used_dltensor");
  const py::capsule owner(managed, [](void* p) {
    auto* m = static_cast<dlpack::ManagedTensor*>(p);
    if (m->deleter) m->deleter(m);
  });
  const dlpack::Tensor& t = managed->tensor;
  const std::vector<py::ssize_t> shape(t.shape, t.shape + t.ndim);
  if (const ElementType* type = t.lanes == 1 ? element_type(t.code, t.bits) : nullptr) {
    check_contiguous(at, shape, t.strides, 1);
    char* data = static_cast<char*>(t.data) + t.byte_offset;
    return {std::make_shared<DeviceMemory>(data, legacy_stream(), owner), data, shape, *type};
  }
  throw py::type_error(at + " has an element type that is not float32, float64, uint8, uint16, int32 or int64");
}

bool is_on_cuda(const py::object& object) {
  if (!py::hasattr(object, "__dlpack_device__") || !py::hasattr(object, "__dlpack__")) return false;
  const int kind = object.attr("__dlpack_device__")().cast<std::pair<int, int>>().first;
  return kind == dlpack::kCuda || kind == dlpack::kCudaManaged;
}

}  // namespace

bool DeviceArray::view_of(py::handle object, const std::string& at, bool writable, py::object& view) {
  const auto owner = py::reinterpret_borrow<py::object>(object);
  if (py::isinstance<DeviceArray>(object)) {
    view = owner;
    return true;
  }
  const auto require_device = [&] {
    if (!device_ops()) throw py::type_error(at + " is on a CUDA device, which medmpi cannot use here");
  };
  const py::object interface = py::getattr(object, "__cuda_array_interface__", py::none());
  if (!interface.is_none()) {
    require_device();
    view = py::cast(from_interface(interface, owner, at, writable));
    return true;
  }
  if (!is_on_cuda(owner)) return false;
  require_device();
  view = py::cast(from_dlpack(owner, at));
  return true;
}

py::dict DeviceArray::cuda_array_interface() const {
  // torch takes such arrays without a look at their stream: let its default stream wait
  memory_->begin_use();
  cuda::order(cuda::current_stream(), legacy_stream());
  py::dict d;
  d["version"] = 3;
  d["shape"] = shape_tuple();
  d["typestr"] = (type_->size == 1 ? "|" : "<") + std::string(type_->code);
  d["data"] = py::make_tuple(count() ? reinterpret_cast<uintptr_t>(data_) : 0, false);
  d["strides"] = py::none();
  d["stream"] = reinterpret_cast<intptr_t>(cuda::current_stream());
  return d;
}

namespace {

/// What an exported tensor refers to, and the stream of who took it.
struct Exported {
  dlpack::ManagedTensor managed{};
  std::shared_ptr<DeviceMemory> memory;
  std::vector<int64_t> shape;
};

}  // namespace

py::capsule DeviceArray::dlpack(const py::object& stream) const {
  memory_->begin_use();
  const intptr_t number = stream.is_none() ? 1 : stream.cast<intptr_t>();
  if (number == 0) throw py::value_error("__dlpack__: stream is 0, which is ambiguous; expected 1, 2 or a handle");
  if (number != -1) cuda::order(cuda::current_stream(), stream_of(number));
  auto* exported = new Exported{{}, memory_, {shape_.begin(), shape_.end()}};
  exported->managed.tensor = {data_,
                              dlpack::kCuda,
                              cuda::device(),
                              static_cast<int32_t>(shape_.size()),
                              static_cast<uint8_t>(type_->dlpack_code),
                              static_cast<uint8_t>(8 * type_->size),
                              1,
                              exported->shape.data(),
                              nullptr,
                              0};
  exported->managed.context = exported;
  exported->managed.deleter = [](dlpack::ManagedTensor* m) {
    const py::gil_scoped_acquire gil;  // memory of somebody else's may go with it
    auto* e = static_cast<Exported*>(m->context);
    try {
      // who took it may still be at work in its stream
      e->memory->begin_use();
      cuda::order(legacy_stream(), cuda::current_stream());
    } catch (const std::exception&) {
      // the device is gone, and so is the work
    }
    delete e;
  };
  return py::reinterpret_steal<py::capsule>(PyCapsule_New(&exported->managed, "dltensor", [](PyObject* capsule) {
    if (!PyCapsule_IsValid(capsule, "dltensor")) return;  // its consumer deletes it
    auto* m = static_cast<dlpack::ManagedTensor*>(PyCapsule_GetPointer(capsule, "dltensor"));
    m->deleter(m);
  }));
}

}  // namespace medmpi
