#include "ops/resize.h"

#include <pybind11/stl.h>

#include "bind/call.h"

namespace medmpi {
namespace {

ResizeShape shape_of(const Call& call, const std::array<int64_t, 4>& x, const std::array<int64_t, 4>& y,
                     const std::string& mode, bool align_corners) {
  call.require(mode == "nearest" || mode == "bilinear",
               [&] { return "mode is '" + mode + "', expected nearest or bilinear"; });
  call.require(x[0] == y[0] && x[3] == y[3], [&] {
    return "images " + text(x) + " and " + text(y) + " differ in number or channels, expected only other sizes";
  });
  call.require(x[1] > 0 && x[2] > 0 && y[1] > 0 && y[2] > 0, "sizes must be at least 1");
  return {
      x[0],         x[1], x[2], x[3], y[1], y[2], mode == "nearest" ? Interpolation::nearest : Interpolation::bilinear,
      align_corners};
}

}  // namespace

void bind_resize(py::module_& m) {
  m.def(
      "resize",
      [](const py::object& x, const py::object& out, const std::array<int64_t, 4>& out_shape, const std::string& mode,
         bool align_corners) {
        Call call("resize");
        const auto in = call.in<float, 4>("x", x);
        const auto y = call.out<float, 4>("out", out, out_shape);
        const ResizeShape s = shape_of(call, in.shape, out_shape, mode, align_corners);
        const auto kernel = call.ops().resize->forward;
        call.launch(kernel, [=] { kernel(s, in.data, y.data); });
      },
      py::arg("x"), py::arg("out"), py::arg("out_shape"), py::arg("mode"), py::arg("align_corners"));
  m.def(
      "resize_backward",
      [](const py::object& dy, const py::object& out, const std::array<int64_t, 4>& x_shape, const std::string& mode,
         bool align_corners) {
        Call call("resize_backward");
        const auto grad = call.in<float, 4>("dy", dy);
        const auto dx = call.out<float, 4>("out", out, x_shape);
        const ResizeShape s = shape_of(call, x_shape, grad.shape, mode, align_corners);
        const auto kernel = call.ops().resize->backward;
        call.run(kernel, [&] { kernel(s, grad.data, dx.data); });
      },
      py::arg("dy"), py::arg("out"), py::arg("x_shape"), py::arg("mode"), py::arg("align_corners"));
}

}  // namespace medmpi
