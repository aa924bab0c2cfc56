#pragma once
// What every binding needs: one Call per call from Python. It checks arrays and names what is wrong with them, keeps
// them alive, and runs a kernel of the table for where they are, host or device, with the interpreter lock released.
#include <pybind11/pybind11.h>

#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "bind/device_array.h"
#include "bind/recording.h"
#include "ops/ops.h"

namespace medmpi {
namespace py = pybind11;

/// Converts to std::string whatever a message needs.
inline std::string text(const std::string& s) { return s; }
inline std::string text(int64_t n) { return std::to_string(n); }
template <size_t N>
std::string text(const std::array<int64_t, N>& shape) {
  std::string t = "(";
  for (size_t i = 0; i < N; ++i) t += (i ? ", " : "") + std::to_string(shape[i]);
  return t + (N == 1 ? ",)" : ")");
}

/// A checked array argument; data is null where an optional one was None.
template <typename T, size_t N>
struct Tensor {
  T* data = nullptr;
  std::array<int64_t, N> shape{};
  int64_t size() const {
    int64_t n = 1;
    for (int64_t extent : shape) n *= extent;
    return n;
  }
};

class Call {
 public:
  explicit Call(const char* op) : op_(op) {}
  ~Call() {
    for (int i = 0; i < count_; ++i) PyBuffer_Release(&views_[i]);
  }
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  /// An input of N dimensions.
  template <typename T, size_t N>
  Tensor<const T, N> in(const char* name, py::handle array) {
    return shaped<const T, N>(name, array, false);
  }
  /// An input of exactly this shape.
  template <typename T, size_t N>
  Tensor<const T, N> in(const char* name, py::handle array, std::array<int64_t, N> want) {
    auto t = in<T, N>(name, array);
    expect(name, t.shape, want);
    return t;
  }
  /// An input that may be None.
  template <typename T, size_t N>
  Tensor<const T, N> maybe(const char* name, py::handle array, std::array<int64_t, N> want) {
    if (array.is_none()) return {};
    return in<T, N>(name, array, want);
  }
  /// An output of exactly this shape; it may not overlap any array seen before, unless `same` is that array's data
  /// and the two are identical (an operation that may run in place).
  template <typename T, size_t N>
  Tensor<T, N> out(const char* name, py::handle array, std::array<int64_t, N> want, const void* same = nullptr) {
    auto t = shaped<T, N>(name, array, true);
    expect(name, t.shape, want);
    check_overlap(name, same);
    return t;
  }
  template <typename T, size_t N>
  Tensor<T, N> maybe_out(const char* name, py::handle array, std::array<int64_t, N> want, const void* same = nullptr) {
    if (array.is_none()) return {};
    return out<T, N>(name, array, want, same);
  }
  /// An input of one or more dimensions, seen as rows of its last axis.
  template <typename T>
  Tensor<const T, 2> rows_in(const char* name, py::handle array) {
    const Py_buffer& v = view<const T>(name, array, false);
    return {static_cast<const T*>(v.buf), rows_of(name, v)};
  }
  template <typename T>
  Tensor<const T, 2> rows_in(const char* name, py::handle array, std::array<int64_t, 2> want) {
    auto t = rows_in<T>(name, array);
    expect(name, t.shape, want);
    return t;
  }
  template <typename T>
  Tensor<T, 2> rows_out(const char* name, py::handle array, std::array<int64_t, 2> want, const void* same = nullptr) {
    const Py_buffer& v = view<T>(name, array, true);
    Tensor<T, 2> t{static_cast<T*>(v.buf), rows_of(name, v)};
    expect(name, t.shape, want);
    check_overlap(name, same);
    return t;
  }
  /// Any contiguous array of this type, whatever its shape.
  template <typename T>
  Tensor<const T, 1> flat_in(const char* name, py::handle array) {
    const Py_buffer& v = view<const T>(name, array, false);
    return {static_cast<const T*>(v.buf), {v.len / v.itemsize}};
  }
  template <typename T>
  Tensor<T, 1> flat_out(const char* name, py::handle array, int64_t want, const void* same = nullptr) {
    const Py_buffer& v = view<T>(name, array, true);
    Tensor<T, 1> t{static_cast<T*>(v.buf), {v.len / v.itemsize}};
    if (t.shape[0] != want) bad(std::string(name) + " has " + text(t.shape[0]) + " values, expected " + text(want));
    check_overlap(name, same);
    return t;
  }

  /// Any contiguous array of this type that the operation changes in place.
  template <typename T>
  Tensor<T, 1> changed(const char* name, py::handle array) {
    const Py_buffer& v = view<T>(name, array, true);
    check_overlap(name, nullptr);
    return {static_cast<T*>(v.buf), {v.len / v.itemsize}};
  }

  /// A small table in host memory wherever the other arrays are; of T, N dimensions.
  template <typename T, size_t N>
  Tensor<const T, N> table(const char* name, py::handle array) {
    const Place place = std::exchange(place_, kTable);
    const auto t = in<T, N>(name, array);
    place_ = place;
    return t;
  }
  template <typename T, size_t N>
  Tensor<const T, N> table(const char* name, py::handle array, std::array<int64_t, N> want) {
    const auto t = table<T, N>(name, array);
    expect(name, t.shape, want);
    return t;
  }
  /// Where an array begins, or null for what is no array.
  static const void* address(py::handle array);

  /// The kernels for where the arrays seen so far are.
  const Ops& ops() const { return place_ == kDevice ? *device_ops() : host_ops(); }
  bool on_device() const { return place_ == kDevice; }

  /// Raises ValueError "op: message".
  [[noreturn]] void bad(const std::string& message) const { throw py::value_error(std::string(op_) + ": " + message); }
  void require(bool ok, const char* message) const {
    if (!ok) bad(message);
  }
  /// The same with a message that is put together only when it is needed: strings cost more than a small kernel.
  template <typename Message, typename = decltype(std::declval<Message>()())>
  void require(bool ok, const Message& message) const {
    if (!ok) bad(message());
  }

  /// Runs kernel() with the lock released. `built` is the table entry that must not be null.
  template <typename Entry, typename Kernel>
  void run(Entry* built, Kernel&& kernel) const {
    if (Recording::active()) unrecordable();
    check_built(built);
    if (on_device()) return run_on_device(kernel);
    py::gil_scoped_release nogil;
    kernel();
  }
  /// The same for a kernel that holds all it needs by value, so that a recording may run it again.
  template <typename Entry, typename Kernel>
  void launch(Entry* built, const Kernel& kernel) const {
    check_built(built);
    if (Recording* recording = Recording::active()) {
      if (on_device())
        recording->add([memories = memories_, kernel] { use(memories, kernel); });
      else
        recording->add(kernel);
      keep_arrays(*recording);
    }
    if (on_device()) return run_on_device(kernel);
    py::gil_scoped_release nogil;
    kernel();
  }

 private:
  static constexpr int kMaxArrays = 24;
  enum Place { kAnywhere, kHost, kDevice, kTable };
  using Memories = std::vector<std::shared_ptr<DeviceMemory>>;

  /// Runs a kernel on the calling thread's stream, in order with what else uses its memory.
  template <typename Kernel>
  static void use(const Memories& memories, Kernel&& kernel) {
    for (const auto& memory : memories) memory->begin_use();
    kernel();
    for (const auto& memory : memories) memory->end_use();
  }
  template <typename Kernel>
  void run_on_device(Kernel&& kernel) const {
    py::gil_scoped_release nogil;
    use(memories_, kernel);
  }

  template <typename T, size_t N>
  Tensor<T, N> shaped(const char* name, py::handle array, bool writable) {
    const Py_buffer& v = view<T>(name, array, writable);
    if (v.ndim != static_cast<int>(N))
      bad(std::string(name) + " has " + text(v.ndim) + " dimensions, expected " + text(static_cast<int64_t>(N)));
    Tensor<T, N> t{static_cast<T*>(v.buf), {}};
    for (size_t i = 0; i < N; ++i) t.shape[i] = v.shape[i];
    return t;
  }
  std::array<int64_t, 2> rows_of(const char* name, const Py_buffer& v) const {
    if (v.ndim < 1) bad(std::string(name) + " has 0 dimensions, expected 1 or more");
    int64_t rows = 1;
    for (int i = 0; i + 1 < v.ndim; ++i) rows *= v.shape[i];
    return {rows, v.shape[v.ndim - 1]};
  }
  template <size_t N>
  void expect(const char* name, const std::array<int64_t, N>& got, const std::array<int64_t, N>& want) const {
    if (got != want) bad(std::string(name) + " has shape " + text(got) + ", expected " + text(want));
  }
  template <typename T>
  const Py_buffer& view(const char* name, py::handle array, bool writable) {
    borrow(name, array, writable, kind<std::remove_const_t<T>>(), sizeof(T));
    return views_[count_ - 1];
  }
  /// The numpy name of a C++ type.
  template <typename T>
  static const char* kind() {
    if constexpr (std::is_same_v<T, float>) return "float32";
    if constexpr (std::is_same_v<T, double>) return "float64";
    if constexpr (std::is_same_v<T, uint8_t>) return "uint8";
    if constexpr (std::is_same_v<T, uint16_t>) return "uint16";
    if constexpr (std::is_same_v<T, int32_t>) return "int32";
    if constexpr (std::is_same_v<T, int64_t>) return "int64";
    return "unsupported";
  }
  void check_built(const void* entry) const {
    if (entry) return;
    PyErr_Format(PyExc_NotImplementedError, "%s: not built for backend %s", op_, ops().name);
    throw py::error_already_set();
  }
  template <typename Result, typename... Args>
  void check_built(Result (*entry)(Args...)) const {
    check_built(reinterpret_cast<const void*>(entry));
  }
  [[noreturn]] void unrecordable() const;
  /// Arrays outside the arena live as long as the recording.
  void keep_arrays(Recording& recording) const;
  void borrow(const char* name, py::handle array, bool writable, const char* want, size_t itemsize);
  bool borrow_device(const char* name, py::handle array, bool writable, const char* want);
  /// ValueError where host and device arrays meet in one call.
  void check_place(const char* name, Place place);
  void check_overlap(const char* name, const void* same) const;

  const char* op_;
  int count_ = 0;
  Place place_ = kAnywhere;
  Memories memories_;  // of device arrays
  const char* names_[kMaxArrays];
  Py_buffer views_[kMaxArrays];
};

}  // namespace medmpi
