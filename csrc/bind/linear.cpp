#include "bind/call.h"

namespace medmpi {
namespace {

void forward(const py::object& x, const py::object& weight, const py::object& bias, const py::object& out) {
  Call call("linear");
  const auto in = call.in<float, 2>("x", x);
  const auto w = call.in<float, 2>("weight", weight);
  const LinearShape g{in.shape[0], in.shape[1], w.shape[1]};
  call.require(w.shape[0] == g.c, [&] { return "weight takes " + text(w.shape[0]) + " channels, x has " + text(g.c); });
  const auto b = call.maybe<float, 1>("bias", bias, {g.k});
  const auto y = call.out<float, 2>("out", out, {g.m, g.k});
  const auto kernel = call.ops().linear->forward;
  call.launch(kernel, [=] { kernel(g, in.data, w.data, b.data, y.data); });
}

void backward_data(const py::object& dy, const py::object& weight, const py::object& out) {
  Call call("linear_backward_data");
  const auto grad = call.in<float, 2>("dy", dy);
  const auto w = call.in<float, 2>("weight", weight);
  const LinearShape g{grad.shape[0], w.shape[0], w.shape[1]};
  call.require(grad.shape[1] == g.k,
               [&] { return "dy has " + text(grad.shape[1]) + " channels, weight gives " + text(g.k); });
  const auto dx = call.out<float, 2>("out", out, {g.m, g.c});
  const auto kernel = call.ops().linear->backward_data;
  call.run(kernel, [&] { kernel(g, grad.data, w.data, dx.data); });
}

void backward_weight(const py::object& dy, const py::object& x, const py::object& out) {
  Call call("linear_backward_weight");
  const auto grad = call.in<float, 2>("dy", dy);
  const auto in = call.in<float, 2>("x", x);
  const LinearShape g{grad.shape[0], in.shape[1], grad.shape[1]};
  call.require(in.shape[0] == g.m, [&] { return "x has " + text(in.shape[0]) + " rows, dy has " + text(g.m); });
  const auto dweight = call.out<float, 2>("out", out, {g.c, g.k});
  const auto kernel = call.ops().linear->backward_weight;
  call.run(kernel, [&] { kernel(g, grad.data, in.data, dweight.data); });
}

void backward_bias(const py::object& dy, const py::object& out) {
  Call call("linear_backward_bias");
  const auto grad = call.in<float, 2>("dy", dy);
  const LinearShape g{grad.shape[0], 0, grad.shape[1]};
  const auto dbias = call.out<float, 1>("out", out, {g.k});
  const auto kernel = call.ops().linear->backward_bias;
  call.run(kernel, [&] { kernel(g, grad.data, dbias.data); });
}

}  // namespace

void bind_linear(py::module_& m) {
  m.def("linear", &forward, py::arg("x"), py::arg("weight"), py::arg("bias"), py::arg("out"));
  m.def("linear_backward_data", &backward_data, py::arg("dy"), py::arg("weight"), py::arg("out"));
  m.def("linear_backward_weight", &backward_weight, py::arg("dy"), py::arg("x"), py::arg("out"));
  m.def("linear_backward_bias", &backward_bias, py::arg("dy"), py::arg("out"));
}

}  // namespace medmpi
