#pragma once
// Kernel calls noted down while Python makes them, to be made again on the same memory without Python: what a CUDA
// graph is to a GPU. Only calls that hold all they need by value can be noted (Call::launch); others raise.
#include <pybind11/pybind11.h>

#include <functional>
#include <utility>
#include <vector>

namespace medmpi {
namespace py = pybind11;

class Recording {
 public:
  /// The recording of the calling thread, or null.
  static Recording* active();

  void begin();
  void end();
  void add(std::function<void()> kernel) { kernels_.push_back(std::move(kernel)); }
  /// What has to live as long as the recording.
  void keep(py::object object) { kept_.push_back(std::move(object)); }
  /// Makes the calls, in order. The interpreter lock must not be held.
  void run() const {
    for (const auto& kernel : kernels_) kernel();
  }
  size_t size() const { return kernels_.size(); }

 private:
  std::vector<std::function<void()>> kernels_;
  std::vector<py::object> kept_;
};

}  // namespace medmpi
