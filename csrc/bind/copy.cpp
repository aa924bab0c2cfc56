#include <pybind11/stl.h>

#include <vector>

#include "bind/call.h"

namespace medmpi {
namespace {

using Object = const py::object&;

using Widths = std::vector<int64_t>;

int64_t line_of(const Widths& width) {
  int64_t sum = 0;
  for (int64_t w : width) sum += w;
  return sum;
}

void join(const std::vector<py::object>& parts, const Widths& width, int64_t rows, Object whole) {
  Call call("concat");
  std::vector<const float*> xs;
  for (size_t i = 0; i < parts.size(); ++i) {
    const auto x = call.flat_in<float>("xs", parts[i]);
    call.require(x.size() == rows * width.at(i), "xs do not fit out");
    xs.push_back(x.data);
  }
  const auto y = call.flat_out<float>("out", whole, rows * line_of(width));
  const auto kernel = call.ops().copy->join;
  call.launch(kernel, [=] { kernel(rows, static_cast<int64_t>(xs.size()), width.data(), xs.data(), y.data); });
}

void cut(Object whole, const Widths& width, int64_t rows, const std::vector<py::object>& parts) {
  Call call("split");
  const auto x = call.flat_in<float>("x", whole);
  call.require(x.size() == rows * line_of(width), "sizes do not fit x");
  std::vector<float*> ys;
  for (size_t i = 0; i < parts.size(); ++i)
    ys.push_back(call.flat_out<float>("out", parts[i], rows * width.at(i)).data);
  const auto kernel = call.ops().copy->cut;
  call.run(kernel, [&] { kernel(rows, static_cast<int64_t>(ys.size()), width.data(), x.data, ys.data()); });
}

void pad(Object x, std::array<int64_t, 4> margin, double value, Object out) {
  Call call("pad");
  const auto in = call.in<float, 4>("x", x);
  const auto [n, h, w, c] = in.shape;
  const auto [top, bottom, left, right] = margin;
  const auto y = call.out<float, 4>("out", out, {n, top + h + bottom, left + w + right, c});
  const auto kernel = call.ops().copy->pad;
  call.launch(kernel, [=, n = n, h = h, w = w, c = c, top = top, bottom = bottom, left = left, right = right] {
    kernel(n, h, w, c, top, bottom, left, right, static_cast<float>(value), in.data, y.data);
  });
}

void crop(Object x, std::array<int64_t, 4> margin, Object out) {
  Call call("crop");
  const auto in = call.in<float, 4>("x", x);
  const auto [n, h, w, c] = in.shape;
  const auto [top, bottom, left, right] = margin;
  const int64_t p = h - top - bottom, q = w - left - right;
  const auto y = call.out<float, 4>("out", out, {n, p, q, c});
  const auto kernel = call.ops().copy->crop;
  call.launch(kernel, [=, n = n, h = h, w = w, c = c, top = top, left = left] {
    kernel(n, h, w, c, top, left, p, q, in.data, y.data);
  });
}

/// (n, rows, columns) to (n, columns, rows), whatever the four dimensions' names.
void transpose(const std::string& op, Object x, bool channels_first, Object out) {
  Call call(op.c_str());
  const auto in = call.in<float, 4>("x", x);
  const auto& s = in.shape;
  const std::array<int64_t, 4> shape =
      channels_first ? std::array<int64_t, 4>{s[0], s[2], s[3], s[1]} : std::array<int64_t, 4>{s[0], s[3], s[1], s[2]};
  const auto y = call.out<float, 4>("out", out, shape);
  const int64_t rows = channels_first ? s[1] : s[1] * s[2], columns = channels_first ? s[2] * s[3] : s[3];
  const auto kernel = call.ops().copy->transpose;
  call.run(kernel, [&] { kernel(s[0], rows, columns, in.data, y.data); });
}

}  // namespace

void bind_copy(py::module_& m) {
  m.def("join", &join, py::arg("parts"), py::arg("width"), py::arg("rows"), py::arg("whole"));
  m.def("cut", &cut, py::arg("whole"), py::arg("width"), py::arg("rows"), py::arg("parts"));
  m.def("pad", &pad, py::arg("x"), py::arg("margin"), py::arg("value"), py::arg("out"));
  m.def("crop", &crop, py::arg("x"), py::arg("margin"), py::arg("out"));
  m.def("transpose", &transpose, py::arg("op"), py::arg("x"), py::arg("channels_first"), py::arg("out"));
}

}  // namespace medmpi
