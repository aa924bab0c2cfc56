#include "ops/recursive.h"

#include <pybind11/stl.h>

#include "bind/border.h"

namespace medmpi {
namespace {

template <typename T>
void run_recursive(void (*RecursiveOps::*entry)(const AxisFilter&, const RecursiveFilter&, const T*, T*),
                   const py::object& x, const py::object& out, const std::array<int64_t, 3>& extents,
                   const std::array<double, 13>& numbers, int64_t margin, const std::string& mode, double cval) {
  Call call("recursive_filter");
  const auto in = call.flat_in<T>("x", x);
  const auto y = call.flat_out<T>("out", out, in.size());
  const AxisFilter f{extents[0], extents[1], extents[2], 0, border_of(call, mode), Symmetry::none, cval};
  const auto kernel = call.ops().recursive->*entry;
  call.require(f.outer * f.n * f.inner == in.size(), "extents do not multiply to the size of x");
  call.require(margin >= 0, "margin must not be negative");
  RecursiveFilter r{numbers[0], {numbers[1], numbers[2], numbers[3]}, {}, margin};
  std::copy(numbers.begin() + 4, numbers.end(), r.ending);
  if (in.size()) call.run(kernel, [&] { kernel(f, r, in.data, y.data); });
}

}  // namespace

void bind_recursive(py::module_& m) {
  const auto define = [&m](const char* name, auto ops) {
    m.def(
        name,
        [ops](const py::object& x, const py::object& out, const std::array<int64_t, 3>& extents,
              const std::array<double, 13>& numbers, int64_t margin, const std::string& mode,
              double cval) { run_recursive(ops, x, out, extents, numbers, margin, mode, cval); },
        py::arg("x"), py::arg("out"), py::arg("extents"), py::arg("numbers"), py::arg("margin"), py::arg("mode"),
        py::arg("cval"));
  };
  define("recursive_filter", &RecursiveOps::f32);
  define("recursive_filter_double", &RecursiveOps::f64);
}

}  // namespace medmpi
