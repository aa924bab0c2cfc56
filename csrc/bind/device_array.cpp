#include "bind/device_array.h"

#include <pybind11/stl.h>

#include <numeric>

#include "bind/cuda_graph.h"
#include "bind/dlpack.h"
#include "ops/ops.h"

namespace medmpi {
namespace {

const ElementType kTypes[] = {
    {"float32", "f4", 4, dlpack::kFloat}, {"float64", "f8", 8, dlpack::kFloat}, {"uint8", "u1", 1, dlpack::kUInt},
    {"uint16", "u2", 2, dlpack::kUInt},   {"int32", "i4", 4, dlpack::kInt},     {"int64", "i8", 8, dlpack::kInt},
};

}  // namespace

const ElementType& element_type(const std::string& at, const py::dtype& dtype) {
  const std::string name = py::str(dtype);
  for (const ElementType& type : kTypes)
    if (name == type.name) return type;
  throw py::type_error(at + " has dtype " + name + ", expected float32, float64, uint8, uint16, int32 or int64");
}

const ElementType* element_type(int dlpack_code, size_t bits) {
  for (const ElementType& type : kTypes)
    if (dlpack_code == type.dlpack_code && bits == 8 * type.size) return &type;
  return nullptr;
}

std::string shape_text(const std::vector<py::ssize_t>& shape) {
  std::string t = "(";
  for (size_t i = 0; i < shape.size(); ++i) t += (i ? ", " : "") + std::to_string(shape[i]);
  return t + (shape.size() == 1 ? ",)" : ")");
}

DeviceMemory::DeviceMemory(size_t bytes) : stream_(cuda::current_stream()), foreign_(false) {
  block_ = cuda::allocate(bytes, stream_);
}

DeviceMemory::DeviceMemory(void* data, cuda::Stream stream, py::object owner)
    : block_{data, 0}, stream_(stream), owner_(std::move(owner)), foreign_(true) {}

DeviceMemory::~DeviceMemory() {
  if (!foreign_) cuda::release(block_, stream_);
}

void DeviceMemory::begin_use(cuda::Stream mine) {
  if (CudaGraph* graph = CudaGraph::capturing()) {
    if (stream_.load() != mine) cuda::order(stream_, mine);  // raises
    graph->note(shared_from_this());
  }
  const cuda::Stream last = foreign_ ? stream_.load() : stream_.exchange(mine);
  if (last != mine) cuda::order(last, mine);
}

void DeviceMemory::end_use() const {
  if (foreign_) cuda::order(cuda::current_stream(), stream_);
}

DeviceArray DeviceArray::empty(const std::vector<py::ssize_t>& shape, const py::dtype& dtype) {
  const ElementType& type = element_type("empty: the array", dtype);
  size_t bytes = type.size;
  for (py::ssize_t extent : shape) {
    if (extent < 0) throw py::value_error("empty: shape has a negative size, expected sizes >= 0");
    const auto n = static_cast<size_t>(extent);
    if (n && bytes > (size_t{1} << 62) / n) throw py::value_error("empty: shape is too large for memory");
    bytes *= n;
  }
  auto memory = std::make_shared<DeviceMemory>(bytes);
  char* data = memory->data();
  return {std::move(memory), data, shape, type};
}

py::ssize_t DeviceArray::count() const {
  return std::accumulate(shape_.begin(), shape_.end(), py::ssize_t{1}, std::multiplies<>());
}

py::tuple DeviceArray::shape_tuple() const {
  py::tuple t(shape_.size());
  for (size_t i = 0; i < shape_.size(); ++i) t[i] = shape_[i];
  return t;
}

py::array DeviceArray::numpy(const py::object& out) const {
  py::array host = out.is_none() ? py::array(dtype(), shape_) : out.cast<py::array>();
  const std::vector<py::ssize_t> shape(host.shape(), host.shape() + host.ndim());
  if (shape != shape_ || std::string(py::str(host.dtype())) != type_->name || !(host.flags() & py::array::c_style) ||
      !host.writeable())
    throw py::value_error("numpy: out has shape " + shape_text(shape) + " and dtype " +
                          std::string(py::str(host.dtype())) + ", expected a writable C-contiguous array of " +
                          shape_text(shape_) + " and " + type_->name);
  void* to = host.mutable_data();
  memory_->begin_use();
  py::gil_scoped_release nogil;
  cuda::copy_to_host(to, data_, bytes());
  return host;
}

DeviceArray DeviceArray::copy() const {
  auto memory = std::make_shared<DeviceMemory>(bytes());
  memory_->begin_use();
  cuda::copy_on_device(memory->data(), data_, bytes());
  memory_->end_use();
  char* data = memory->data();
  return {std::move(memory), data, shape_, *type_};
}

DeviceArray DeviceArray::reshape(std::vector<py::ssize_t> shape) const {
  py::ssize_t known = 1, unknown = -1;
  for (size_t i = 0; i < shape.size(); ++i) {
    if (shape[i] >= 0)
      known *= shape[i];
    else if (shape[i] == -1 && unknown < 0)
      unknown = static_cast<py::ssize_t>(i);
    else
      throw py::value_error("reshape: shape is " + shape_text(shape) + ", expected sizes >= 0 and at most one -1");
  }
  if (unknown >= 0 && known > 0) {
    shape[static_cast<size_t>(unknown)] = count() / known;
    known *= count() / known;
  }
  if (known != count())
    throw py::value_error("reshape: shape is " + shape_text(shape) + ", expected " + std::to_string(count()) +
                          " values");
  return {memory_, data_, std::move(shape), *type_};
}

DeviceArray DeviceArray::part(const py::object& key) const {
  if (py::isinstance<py::ellipsis>(key)) return *this;
  if (shape_.empty()) throw py::index_error("an array of 0 dimensions has no parts");
  const py::ssize_t n = shape_[0];
  const size_t row = n ? bytes() / static_cast<size_t>(n) : 0;
  auto shape = shape_;
  py::ssize_t start = 0;
  if (py::isinstance<py::slice>(key)) {
    py::ssize_t stop = 0, step = 0, length = 0;
    if (!key.cast<py::slice>().compute(n, &start, &stop, &step, &length)) throw py::error_already_set();
    if (step != 1) throw py::index_error("a slice has step " + std::to_string(step) + ", expected 1 on a device");
    shape[0] = length;
  } else if (PyIndex_Check(key.ptr())) {
    start = PyNumber_AsSsize_t(key.ptr(), PyExc_IndexError);
    if (start == -1 && PyErr_Occurred()) throw py::error_already_set();
    if (start < 0) start += n;
    if (start < 0 || start >= n) throw py::index_error("index is out of range for " + std::to_string(n) + " elements");
    shape.erase(shape.begin());
  } else {
    throw py::index_error("expected an index or a slice of the first axis: device arrays stay contiguous");
  }
  return {memory_, data_ + static_cast<size_t>(start) * row, std::move(shape), *type_};
}

void DeviceArray::assign(const py::object& value) const {
  py::object view;
  if (PyFloat_Check(value.ptr()) || PyLong_Check(value.ptr())) {
    const auto number = value.cast<double>();
    memory_->begin_use();
    if (number == 0)
      cuda::set_zero(data_, bytes());
    else if (std::string(type_->name) == "float32")
      device_ops()->elementwise->fill(count(), static_cast<float>(number), reinterpret_cast<float*>(data_));
    else
      throw py::type_error("a device array of " + std::string(type_->name) + " can be filled with 0 only");
  } else if (view_of(value, "value", false, view)) {
    const auto& from = view.cast<const DeviceArray&>();
    if (from.shape_ != shape_ || from.type_ != type_)
      throw py::value_error("value has shape " + shape_text(from.shape_) + " and dtype " + from.type_->name +
                            ", expected " + shape_text(shape_) + " and " + type_->name);
    memory_->begin_use();
    from.memory_->begin_use();
    cuda::copy_on_device(data_, from.data_, bytes());
    from.memory_->end_use();
  } else {
    const auto host = py::reinterpret_borrow<py::object>(value).cast<py::array>();
    const std::vector<py::ssize_t> shape(host.shape(), host.shape() + host.ndim());
    if (shape != shape_)
      throw py::value_error("value has shape " + shape_text(shape) + ", expected " + shape_text(shape_));
    if (!(host.flags() & py::array::c_style)) throw py::type_error("value is not C-contiguous, expected it to be");
    if (element_type("value", host.dtype()).name != type_->name)
      throw py::type_error("value has dtype " + std::string(py::str(host.dtype())) + ", expected " + type_->name);
    memory_->begin_use();
    const void* from = host.data();
    py::gil_scoped_release nogil;
    cuda::copy_to_device(data_, from, bytes());
  }
  memory_->end_use();
}

void bind_device_array(py::module_& m) {
  py::class_<DeviceArray>(m, "DeviceArray", "A C-contiguous array in a CUDA device's memory.")
      .def_property_readonly("shape", &DeviceArray::shape_tuple)
      .def_property_readonly("dtype", &DeviceArray::dtype)
      .def_property_readonly("ndim", [](const DeviceArray& a) { return a.shape().size(); })
      .def_property_readonly("size", &DeviceArray::count)
      .def_property_readonly("nbytes", &DeviceArray::bytes)
      .def_property_readonly("device", [](const DeviceArray&) { return "cuda:" + std::to_string(cuda::device()); })
      .def("numpy", &DeviceArray::numpy, py::arg("out") = py::none())
      .def("copy", &DeviceArray::copy)
      .def("reshape",
           [](const DeviceArray& a, const py::args& sizes) {
             const py::object shape =
                 sizes.size() == 1 && !PyIndex_Check(sizes[0].ptr()) ? py::object(sizes[0]) : py::object(sizes);
             return a.reshape(shape.cast<std::vector<py::ssize_t>>());
           })
      .def("__getitem__", &DeviceArray::part, py::arg("key"))
      .def(
          "__setitem__",
          [](const DeviceArray& a, const py::object& key, const py::object& value) { a.part(key).assign(value); },
          py::arg("key"), py::arg("value"))
      .def("__len__",
           [](const DeviceArray& a) {
             if (a.shape().empty()) throw py::type_error("an array of 0 dimensions has no length");
             return a.shape()[0];
           })
      .def("__repr__",
           [](const DeviceArray& a) {
             return "DeviceArray(shape=" + shape_text(a.shape()) + ", dtype=" + a.type().name +
                    ", device=cuda:" + std::to_string(cuda::device()) + ")";
           })
      .def("__array__",
           [](const DeviceArray&, const py::args&, const py::kwargs&) -> py::object {
             throw py::type_error("this array is on a device, expected one in host memory; copy it with .numpy()");
           })
      .def_property_readonly("__cuda_array_interface__", &DeviceArray::cuda_array_interface)
      .def(
          "__dlpack__",
          [](const DeviceArray& a, const py::object& stream, const py::object&, const py::object&, const py::object&) {
            return a.dlpack(stream);
          },
          py::kw_only(), py::arg("stream") = py::none(), py::arg("max_version") = py::none(),
          py::arg("dl_device") = py::none(), py::arg("copy") = py::none())
      .def("__dlpack_device__",
           [](const DeviceArray&) { return py::make_tuple(static_cast<int>(dlpack::kCuda), cuda::device()); });
  m.def("device_empty", &DeviceArray::empty, py::arg("shape"), py::arg("dtype"));
  m.def(
      "device_view",
      [](const py::object& array) {
        py::object view;
        // without a device here, the function that the array is given to says which argument is elsewhere
        if (!device_ops() || !DeviceArray::view_of(array, "device_view: array", false, view))
          return py::object(py::none());
        return view;
      },
      py::arg("array"));
  m.def(
      "device_shares_memory",
      [](const DeviceArray& a, const DeviceArray& b) {
        return a.data() < b.data() + b.bytes() && b.data() < a.data() + a.bytes();
      },
      py::arg("a"), py::arg("b"));
  m.def("synchronize", &cuda::synchronize, py::call_guard<py::gil_scoped_release>());
  m.def("use_device", &cuda::use_device, py::arg("index"));
  m.def("device_name", &cuda::device_name, py::arg("index"));
  m.def("device_statistics", [] {
    const auto now = cuda::statistics();
    py::dict d;
    d["in_use"] = now.in_use;
    d["reserved"] = now.reserved;
    d["peak"] = now.peak;
    d["cap"] = now.cap;
    return d;
  });
  m.def("reset_peak_device_memory", &cuda::reset_peak);
  m.def("trim_device_memory", &cuda::trim, py::call_guard<py::gil_scoped_release>());
}

}  // namespace medmpi
