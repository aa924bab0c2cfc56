#include "bind/call.h"

#include "bind/arena.h"

namespace medmpi {
namespace {

/// The numpy name of a buffer's element type, or its format where it has no short name.
std::string dtype_name(const Py_buffer& v) {
  const std::string format = v.format ? v.format : "B";
  const char code = format.empty() ? 'B' : format.back();
  const bool swapped = !format.empty() && (format[0] == '>' || format[0] == '!');
  const std::string bits = std::to_string(v.itemsize * 8);
  std::string name = format;
  if (format.find('Z') != std::string::npos) return "complex" + bits;
  if (std::strchr("efdg", code)) name = "float" + bits;
  if (std::strchr("bhilqn", code)) name = "int" + bits;
  if (std::strchr("BHILQN", code)) name = "uint" + bits;
  if (code == '?') name = "bool";
  return swapped ? "big-endian " + name : name;
}

}  // namespace

void Call::borrow(const char* name, py::handle array, bool writable, const char* want, size_t itemsize) {
  const std::string at = std::string(op_) + ": " + name;
  if (count_ == kMaxArrays) throw std::logic_error(at + ": too many arrays in one call");
  Py_buffer v;
  if (PyObject_GetBuffer(array.ptr(), &v, PyBUF_FORMAT | PyBUF_C_CONTIGUOUS | (writable ? PyBUF_WRITABLE : 0)) != 0) {
    PyErr_Clear();
    if (borrow_device(name, array, writable, want)) return;
    if (!PyObject_CheckBuffer(array.ptr()))
      throw py::type_error(at + " is a " + Py_TYPE(array.ptr())->tp_name + ", expected a " + want + " array");
    if (PyObject_GetBuffer(array.ptr(), &v, PyBUF_FULL_RO) != 0) {
      PyErr_Clear();
      throw py::type_error(at + " does not share its memory, expected a " + want + " array");
    }
    const bool contiguous = PyBuffer_IsContiguous(&v, 'C');
    PyBuffer_Release(&v);
    throw py::type_error(at + (contiguous
                                   ? " is read-only, expected a writable array"
                                   : " is not C-contiguous; pass numpy.ascontiguousarray(" + std::string(name) + ")"));
  }
  const std::string got = dtype_name(v);
  if (got != want || static_cast<size_t>(v.itemsize) != itemsize) {
    PyBuffer_Release(&v);
    throw py::type_error(at + " has dtype " + got + ", expected " + want + "; convert it with " + name + ".astype(\"" +
                         want + "\")");
  }
  views_[count_] = v;
  names_[count_] = name;
  ++count_;
  if (place_ != kHost) check_place(name, kHost);
}

bool Call::borrow_device(const char* name, py::handle array, bool writable, const char* want) {
  if (PyObject_CheckBuffer(array.ptr())) return false;
  const std::string at = std::string(op_) + ": " + name;
  py::object view;
  if (!DeviceArray::view_of(array, at, writable, view)) return false;
  const auto& mine = view.cast<const DeviceArray&>();
  if (std::strcmp(mine.type().name, want) != 0)
    throw py::type_error(at + " has dtype " + mine.type().name + ", expected " + want);
  Py_buffer& v = views_[count_];
  v = {};
  v.buf = mine.data();
  v.len = static_cast<Py_ssize_t>(mine.bytes());
  v.itemsize = static_cast<Py_ssize_t>(mine.type().size);
  v.ndim = static_cast<int>(mine.shape().size());
  v.shape = const_cast<Py_ssize_t*>(mine.shape().data());
  memories_.push_back(mine.memory());
  v.obj = view.release().ptr();  // given back with the others
  names_[count_] = name;
  ++count_;
  check_place(name, kDevice);
  return true;
}

const void* Call::address(py::handle array) {
  if (PyObject_CheckBuffer(array.ptr())) return py::reinterpret_borrow<py::buffer>(array).request().ptr;
  py::object view;
  return DeviceArray::view_of(array, "out", false, view) ? view.cast<const DeviceArray&>().data() : nullptr;
}

void Call::check_place(const char* name, Place place) {
  if (place_ == kAnywhere) place_ = place;
  if (place_ == kTable && place == kHost) return;
  const auto where = [](Place p) { return p == kDevice ? "on the device" : "in host memory"; };
  if (place_ != place)
    bad(std::string(name) + " is " + where(place) + ", expected it " + where(place_) +
        (place_ == kTable ? "" : std::string(" as ") + names_[0]) + "; copy it with " +
        (place == kDevice ? "to_host" : "to_device"));
}

void Call::unrecordable() const {
  PyErr_Format(PyExc_RuntimeError, "%s: cannot be recorded; record inference with layers that run in kernels", op_);
  throw py::error_already_set();
}

void Call::keep_arrays(Recording& recording) const {
  Arena* arena = Arena::active();
  for (int i = 0; i < count_; ++i)
    if (!arena || !arena->holds(views_[i].buf)) recording.keep(py::reinterpret_borrow<py::object>(views_[i].obj));
}

void Call::check_overlap(const char* name, const void* same) const {
  const Py_buffer& mine = views_[count_ - 1];
  const char* begin = static_cast<const char*>(mine.buf);
  for (int i = 0; i + 1 < count_; ++i) {
    const char* other = static_cast<const char*>(views_[i].buf);
    const bool overlaps = mine.len && views_[i].len && begin < other + views_[i].len && other < begin + mine.len;
    if (overlaps && !(same == mine.buf && other == begin && views_[i].len == mine.len))
      bad(std::string(name) + " overlaps " + names_[i] + ", expected separate memory");
  }
}

}  // namespace medmpi
