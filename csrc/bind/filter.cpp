#include "ops/filter.h"

#include <pybind11/stl.h>

#include <tuple>

#include "bind/border.h"

namespace medmpi {
namespace {

using Extents = std::tuple<int64_t, int64_t, int64_t>;

/// Taps that are even or odd about their centre, as scipy tests it.
template <typename T>
Symmetry symmetry_of(const Tensor<const T, 1>& taps) {
  const int64_t radius = taps.size() / 2;
  bool even = true, odd = true;
  for (int64_t i = 1; i <= radius; ++i) {
    const T a = taps.data[radius + i], b = taps.data[radius - i];
    if (std::abs(a - b) > std::numeric_limits<T>::epsilon()) even = false;
    if (std::abs(a + b) > std::numeric_limits<T>::epsilon()) odd = false;
  }
  return even ? Symmetry::even : odd ? Symmetry::odd : Symmetry::none;
}

template <typename T>
AxisFilter axis_of(const Call& call, const Tensor<const T, 1>& taps, const Extents& extents, const std::string& mode,
                   double cval) {
  const auto [outer, n, inner] = extents;
  call.require(taps.size() % 2 == 1,
               [&] { return "taps has " + text(taps.size()) + " values, expected an odd number"; });
  return {outer, n, inner, taps.size() / 2, border_of(call, mode), symmetry_of(taps), cval};
}

template <typename T>
void run_axis(void (*FilterOps::*entry)(const AxisFilter&, const T*, const T*, T*), const py::object& x,
              const py::object& taps, const py::object& out, const Extents& extents, const std::string& mode,
              double cval) {
  Call call("correlate1d");
  const auto in = call.flat_in<T>("x", x);
  const auto weights = call.table<T, 1>("taps", taps);
  const auto kernel = call.ops().filter->*entry;
  const AxisFilter f = axis_of(call, weights, extents, mode, cval);
  const auto y = call.flat_out<T>("out", out, in.size());
  call.require(f.outer * f.n * f.inner == in.size(), "extents do not multiply to the size of x");
  if (in.size()) call.run(kernel, [&] { kernel(f, weights.data, in.data, y.data); });
}

}  // namespace

void bind_filter(py::module_& m) {
  m.def(
      "correlate1d",
      [](const py::object& x, const py::object& taps, const py::object& out, const Extents& extents,
         const std::string& mode,
         double cval) { run_axis<float>(&FilterOps::correlate1d, x, taps, out, extents, mode, cval); },
      py::arg("x"), py::arg("taps"), py::arg("out"), py::arg("extents"), py::arg("mode"), py::arg("cval"));
  m.def(
      "correlate1d_double",
      [](const py::object& x, const py::object& taps, const py::object& out, const Extents& extents,
         const std::string& mode,
         double cval) { run_axis<double>(&FilterOps::correlate1d_double, x, taps, out, extents, mode, cval); },
      py::arg("x"), py::arg("taps"), py::arg("out"), py::arg("extents"), py::arg("mode"), py::arg("cval"));
  m.def(
      "correlate2d",
      [](const py::object& x, const py::object& row_taps, const py::object& column_taps, const py::object& out,
         int64_t planes, int64_t h, int64_t w, int64_t inner, const std::string& row_mode,
         const std::string& column_mode, double cval) {
        Call call("correlate2d");
        const auto in = call.flat_in<float>("x", x);
        const auto row_weights = call.table<float, 1>("row_taps", row_taps);
        const auto column_weights = call.table<float, 1>("column_taps", column_taps);
        const AxisFilter rows = axis_of(call, row_weights, {planes, h, w * inner}, row_mode, cval);
        const AxisFilter columns = axis_of(call, column_weights, {planes * h, w, inner}, column_mode, cval);
        const auto y = call.flat_out<float>("out", out, in.size());
        call.require(planes * h * w * inner == in.size(), "extents do not multiply to the size of x");
        call.require(rows.border != Border::wrap && rows.radius < h, "rows must find their sources within the radius");
        const auto kernel = call.ops().filter->correlate2d;
        if (in.size())
          call.run(kernel, [&] { kernel(rows, columns, row_weights.data, column_weights.data, in.data, y.data); });
      },
      py::arg("x"), py::arg("row_taps"), py::arg("column_taps"), py::arg("out"), py::arg("planes"), py::arg("h"),
      py::arg("w"), py::arg("inner"), py::arg("row_mode"), py::arg("column_mode"), py::arg("cval"));
}

}  // namespace medmpi
