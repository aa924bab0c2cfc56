#include "bind/recording.h"

#include <stdexcept>

#include "bind/call.h"

namespace medmpi {
namespace {

thread_local Recording* current = nullptr;

}  // namespace

Recording* Recording::active() { return current; }

void Recording::begin() {
  if (current) throw std::logic_error("Recording: one is on already, expected one at a time in a thread");
  current = this;
}

void Recording::end() { current = nullptr; }

void bind_recording(py::module_& m) {
  py::class_<Recording>(m, "Recording",
                        "Notes the kernel calls of a with block; ``run()`` makes them again on the same arrays.")
      .def(py::init<>())
      .def(
          "__enter__",
          [](Recording& self) -> Recording& {
            self.begin();
            return self;
          },
          py::return_value_policy::reference_internal)
      .def("__exit__", [](Recording& self, const py::args&) { self.end(); })
      .def("run", &Recording::run, py::call_guard<py::gil_scoped_release>())
      .def("__len__", &Recording::size);
}

}  // namespace medmpi
