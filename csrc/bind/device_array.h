#pragma once
// Arrays in a device's memory: our own, and views of those that other libraries hold there.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "cuda/memory.h"

namespace medmpi {
namespace py = pybind11;

/// A block of device memory and the stream that used it last.
class DeviceMemory : public std::enable_shared_from_this<DeviceMemory> {
 public:
  /// Of the pool, for the calling thread's stream.
  explicit DeviceMemory(size_t bytes);
  /// Somebody else's, whose work on it is in `stream`; `owner` lives as long.
  DeviceMemory(void* data, cuda::Stream stream, py::object owner);
  ~DeviceMemory();
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  char* data() const { return static_cast<char*>(block_.data); }
  /// Of graphs, in whose memory it lies; 0 for none.
  uint64_t home() const { return block_.home; }
  /// Before the calling thread's stream, or another, uses the memory: lets it wait for whoever did before.
  void begin_use() { begin_use(cuda::current_stream()); }
  void begin_use(cuda::Stream mine);
  /// After that: lets a foreign owner's stream wait for ours.
  void end_use() const;

 private:
  cuda::Block block_;
  std::atomic<cuda::Stream> stream_;
  py::object owner_;  // null for our own
  bool foreign_;
};

/// An element type: numpy's name and code, size, and DLPack's kind of number.
struct ElementType {
  const char* name;
  const char* code;
  size_t size;
  int dlpack_code;
};

/// TypeError naming the array `at` for a type that devices do not hold.
const ElementType& element_type(const std::string& at, const py::dtype& dtype);
/// Null for such a type.
const ElementType* element_type(int dlpack_code, size_t bits);

/// "(2, 3)".
std::string shape_text(const std::vector<py::ssize_t>& shape);

/// A C-contiguous array on the device.
class DeviceArray {
 public:
  DeviceArray(std::shared_ptr<DeviceMemory> memory, char* data, std::vector<py::ssize_t> shape, const ElementType& type)
      : memory_(std::move(memory)), data_(data), shape_(std::move(shape)), type_(&type) {}
  /// Uninitialised. ValueError for a negative or an immense shape, TypeError for a type that devices do not hold.
  static DeviceArray empty(const std::vector<py::ssize_t>& shape, const py::dtype& dtype);
  /// A view of an object with __cuda_array_interface__, or with __dlpack__ on a CUDA device. False where it has
  /// neither; `at` names it in errors.
  static bool view_of(py::handle object, const std::string& at, bool writable, py::object& view);

  const std::shared_ptr<DeviceMemory>& memory() const { return memory_; }
  char* data() const { return data_; }
  const std::vector<py::ssize_t>& shape() const { return shape_; }
  const ElementType& type() const { return *type_; }
  py::ssize_t count() const;
  size_t bytes() const { return static_cast<size_t>(count()) * type_->size; }
  py::dtype dtype() const { return py::dtype(std::string(type_->code)); }

  py::tuple shape_tuple() const;
  /// A copy in host memory: in `out`, an array of this shape and type, unless that is None.
  py::array numpy(const py::object& out) const;
  DeviceArray copy() const;
  DeviceArray reshape(std::vector<py::ssize_t> shape) const;
  /// Part of the first axis: an index, a slice of step 1, or all for `...`.
  DeviceArray part(const py::object& key) const;
  /// Copies a host or a device array of the same shape and type here, or fills with a number.
  void assign(const py::object& value) const;
  py::dict cuda_array_interface() const;
  py::capsule dlpack(const py::object& stream) const;

 private:
  std::shared_ptr<DeviceMemory> memory_;
  char* data_;
  std::vector<py::ssize_t> shape_;
  const ElementType* type_;
};

}  // namespace medmpi
