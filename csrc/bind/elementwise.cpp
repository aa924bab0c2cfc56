#include "bind/call.h"

namespace medmpi {
namespace {

using Object = const py::object&;

void add(Object a, Object b, Object out, bool relu) {
  Call call("add");
  const auto left = call.flat_in<float>("a", a);
  const auto right = call.flat_in<float>("b", b);
  call.require(left.size() == right.size(),
               [&] { return "a has " + text(left.size()) + " values, b has " + text(right.size()); });
  const bool onto_b = Call::address(out) == right.data;
  const auto y = call.flat_out<float>("out", out, left.size(), onto_b ? right.data : left.data);
  const auto kernel = call.ops().elementwise->add;
  call.launch(kernel, [=] { kernel(left.size(), left.data, right.data, relu, y.data); });
}

void accumulate(Object x, Object out, double alpha) {
  Call call("accumulate");
  const auto in = call.flat_in<float>("x", x);
  const auto y = call.flat_out<float>("out", out, in.size());
  const auto kernel = call.ops().elementwise->accumulate;
  call.run(kernel, [&] { kernel(in.size(), static_cast<float>(alpha), in.data, y.data); });
}

void scale(Object x, double factor) {
  Call call("scale_");
  const auto y = call.changed<float>("x", x);
  const auto kernel = call.ops().elementwise->scale;
  call.run(kernel, [&] { kernel(y.size(), static_cast<float>(factor), y.data); });
}

void fill(Object x, double value) {
  Call call("fill_");
  const auto y = call.changed<float>("x", x);
  const auto kernel = call.ops().elementwise->fill;
  call.run(kernel, [&] { kernel(y.size(), static_cast<float>(value), y.data); });
}

double sum_squares(Object x) {
  Call call("sum_squares");
  const auto in = call.flat_in<float>("x", x);
  const auto kernel = call.ops().elementwise->sum_squares;
  double sum = 0.0;
  call.run(kernel, [&] { sum = kernel(in.size(), in.data); });
  return sum;
}

bool all_finite(Object x) {
  Call call("all_finite");
  const auto in = call.flat_in<float>("x", x);
  const auto kernel = call.ops().elementwise->all_finite;
  bool finite = true;
  call.run(kernel, [&] { finite = kernel(in.size(), in.data); });
  return finite;
}

void normalize(Object images, Object scale_by, Object shift, Object out) {
  Call call("normalize");
  const auto x = call.rows_in<uint8_t>("images", images);
  const int64_t c = x.shape[1];
  call.require(c >= 1 && c <= 1024, [&] { return "images has " + text(c) + " channels, expected 1 to 1024"; });
  const auto a = call.table<float, 1>("scale", scale_by, {c});
  const auto b = call.table<float, 1>("shift", shift, {c});
  const auto y = call.rows_out<float>("out", out, x.shape);
  const auto kernel = call.ops().elementwise->normalize;
  call.run(kernel, [&] { kernel(x.shape[0], c, x.data, a.data, b.data, y.data); });
}

}  // namespace

void bind_elementwise(py::module_& m) {
  m.def("add", &add, py::arg("a"), py::arg("b"), py::arg("out"), py::arg("relu"));
  m.def("accumulate", &accumulate, py::arg("x"), py::arg("out"), py::arg("alpha"));
  m.def("scale", &scale, py::arg("x"), py::arg("factor"));
  m.def("fill", &fill, py::arg("x"), py::arg("value"));
  m.def("sum_squares", &sum_squares, py::arg("x"));
  m.def("all_finite", &all_finite, py::arg("x"));
  m.def("normalize", &normalize, py::arg("images"), py::arg("scale"), py::arg("shift"), py::arg("out"));
}

}  // namespace medmpi
