#include "ops/histogram.h"

#include "bind/call.h"

namespace medmpi {
namespace {

template <typename T>
void count_levels(void (*HistogramOps::*entry)(int64_t, const T*, int64_t*), const py::object& x,
                  const py::object& out) {
  Call call("histogram");
  const auto in = call.flat_in<T>("image", x);
  const auto kernel = call.ops().histogram->*entry;
  const auto counts = call.flat_out<int64_t>("out", out, int64_t{1} << (8 * sizeof(T)));
  call.run(kernel, [&] { kernel(in.size(), in.data, counts.data); });
}

}  // namespace

void bind_histogram(py::module_& m) {
  m.def(
      "histogram_uint8", [](const py::object& x, const py::object& out) { count_levels(&HistogramOps::u8, x, out); },
      py::arg("x"), py::arg("out"));
  m.def(
      "histogram_uint16", [](const py::object& x, const py::object& out) { count_levels(&HistogramOps::u16, x, out); },
      py::arg("x"), py::arg("out"));
  m.def(
      "histogram_float32",
      [](const py::object& x, const py::object& edges, const py::object& out) {
        Call call("histogram");
        const auto in = call.flat_in<float>("image", x);
        const auto bounds = call.table<float, 1>("edges", edges);
        const int64_t bins = bounds.size() - 1;
        call.require(bins >= 1 && bins < (int64_t{1} << 24), "edges must bound 1 to 2^24 bins");
        const auto counts = call.flat_out<int64_t>("out", out, bins);
        const auto kernel = call.ops().histogram->f32;
        call.run(kernel, [&] { kernel(in.size(), in.data, bins, bounds.data, counts.data); });
      },
      py::arg("x"), py::arg("edges"), py::arg("out"));
  m.def(
      "value_range",
      [](const py::object& x) {
        Call call("value_range");
        const auto in = call.flat_in<float>("image", x);
        call.require(in.size() > 0, "image has no values");
        const auto kernel = call.ops().histogram->range;
        float low = 0, high = 0;
        call.run(kernel, [&] { kernel(in.size(), in.data, &low, &high); });
        return py::make_tuple(low, high);
      },
      py::arg("x"));
}

}  // namespace medmpi
