#include "bind/call.h"

namespace medmpi {

void bind_activation(py::module_& m) {
  m.def(
      "relu",
      [](const py::object& x, const py::object& out) {
        Call call("relu");
        const auto in = call.flat_in<float>("x", x);
        const auto y = call.flat_out<float>("out", out, in.size(), in.data);
        const auto kernel = call.ops().activation->relu;
        call.launch(kernel, [=] { kernel(in.size(), in.data, y.data); });
      },
      py::arg("x"), py::arg("out"));
  m.def(
      "relu_backward",
      [](const py::object& dy, const py::object& y, const py::object& out) {
        Call call("relu_backward");
        const auto grad = call.flat_in<float>("dy", dy);
        const auto saved = call.flat_in<float>("y", y);
        call.require(grad.size() == saved.size(),
                     [&] { return "dy has " + text(grad.size()) + " values, y has " + text(saved.size()); });
        const auto dx = call.flat_out<float>("out", out, grad.size(), grad.data);
        const auto kernel = call.ops().activation->relu_backward;
        call.run(kernel, [&] { kernel(grad.size(), grad.data, saved.data, dx.data); });
      },
      py::arg("dy"), py::arg("y"), py::arg("out"));
}

}  // namespace medmpi
