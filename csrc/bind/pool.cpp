#include <pybind11/stl.h>

#include <vector>

#include "bind/call.h"

namespace medmpi {
namespace {

using Object = const py::object&;
using Pair = std::array<int64_t, 2>;

MaxPool max_shape(const std::array<int64_t, 4>& x, int64_t p, int64_t q, Pair kernel, Pair stride, Pair padding,
                  Pair dilation) {
  return {x[0],      x[1],      x[2],      x[3],       p,          q,           kernel[0],
          kernel[1], stride[0], stride[1], padding[0], padding[1], dilation[0], dilation[1]};
}

void max_forward(Object x, Pair kernel, Pair stride, Pair padding, Pair dilation, Pair size, bool wide, Object out,
                 Object index) {
  Call call("max_pool2d");
  const auto in = call.in<float, 4>("x", x);
  const auto y = call.out<float, 4>("out", out, {in.shape[0], size[0], size[1], in.shape[3]});
  const MaxPool shape = max_shape(in.shape, size[0], size[1], kernel, stride, padding, dilation);
  const auto* ops = call.ops().pool;
  if (wide) {
    const auto places = call.out<int32_t, 4>("indices", index, y.shape);
    call.launch(ops->max_wide, [=] { ops->max_wide(shape, in.data, y.data, places.data); });
  } else {
    const auto places = call.out<uint8_t, 4>("indices", index, y.shape);
    call.launch(ops->max, [=] { ops->max(shape, in.data, y.data, places.data); });
  }
}

void max_backward(Object dy, Object index, std::array<int64_t, 4> x_shape, Pair kernel, Pair stride, Pair padding,
                  Pair dilation, bool wide, Object out) {
  Call call("max_pool2d_backward");
  const auto grad = call.in<float, 4>("dy", dy);
  const auto* ops = call.ops().pool;
  const MaxPool shape = max_shape(x_shape, grad.shape[1], grad.shape[2], kernel, stride, padding, dilation);
  if (wide) {
    const auto places = call.in<int32_t, 4>("indices", index, grad.shape);
    const auto dx = call.out<float, 4>("out", out, x_shape);
    call.run(ops->max_backward_wide, [&] { ops->max_backward_wide(shape, grad.data, places.data, dx.data); });
  } else {
    const auto places = call.in<uint8_t, 4>("indices", index, grad.shape);
    const auto dx = call.out<float, 4>("out", out, x_shape);
    call.run(ops->max_backward, [&] { ops->max_backward(shape, grad.data, places.data, dx.data); });
  }
}

/// Windows from arrays (3, out): begin, end and size, rising; finds the windows of every input.
class Axis {
 public:
  Axis(Call& call, const char* name, Object table, int64_t in) : in_(in) {
    const auto t = call.table<int32_t, 2>(name, table);
    call.require(t.shape[0] == 3, [&] { return std::string(name) + " has " + text(t.shape[0]) + " rows, expected 3"; });
    out_ = t.shape[1];
    table_.assign(t.data, t.data + 3 * out_);
    first_.assign(static_cast<size_t>(in), 0);
    last_.assign(static_cast<size_t>(in), 0);
    for (int64_t i = 0; i < out_; ++i) {
      const int32_t begin = t.data[i], end = t.data[out_ + i];
      call.require(begin >= 0 && begin <= end && end <= in,
                   [&] { return std::string(name) + " has a window outside the image"; });
      for (auto j = static_cast<size_t>(begin); j < static_cast<size_t>(end); ++j) {
        if (!last_[j]) first_[j] = static_cast<int32_t>(i);
        last_[j] = static_cast<int32_t>(i + 1);
      }
    }
  }
  Windows windows() const {
    const int32_t* begin = table_.data();
    return {in_, out_, begin, begin + out_, begin + 2 * out_, first_.data(), last_.data()};
  }
  int64_t out() const { return out_; }

 private:
  int64_t in_, out_ = 0;
  std::vector<int32_t> table_, first_, last_;
};

void average(const std::string& op, Object x, Object rows, Object columns, Object out) {
  Call call(op.c_str());
  const auto in = call.in<float, 4>("x", x);
  const Axis down(call, "rows", rows, in.shape[1]), across(call, "columns", columns, in.shape[2]);
  const auto y = call.out<float, 4>("out", out, {in.shape[0], down.out(), across.out(), in.shape[3]});
  const auto kernel = call.ops().pool->average;
  call.launch(kernel, [=] { kernel(in.shape[0], in.shape[3], down.windows(), across.windows(), in.data, y.data); });
}

void average_backward(const std::string& op, Object dy, std::array<int64_t, 4> x_shape, Object rows, Object columns,
                      Object out) {
  Call call(op.c_str());
  const Axis down(call, "rows", rows, x_shape[1]), across(call, "columns", columns, x_shape[2]);
  const auto grad = call.in<float, 4>("dy", dy, {x_shape[0], down.out(), across.out(), x_shape[3]});
  const auto dx = call.out<float, 4>("out", out, x_shape);
  const auto kernel = call.ops().pool->average_backward;
  call.run(kernel, [&] { kernel(x_shape[0], x_shape[3], down.windows(), across.windows(), grad.data, dx.data); });
}

}  // namespace

void bind_pool(py::module_& m) {
  m.def("max_pool2d", &max_forward, py::arg("x"), py::arg("kernel_size"), py::arg("stride"), py::arg("padding"),
        py::arg("dilation"), py::arg("size"), py::arg("wide"), py::arg("out"), py::arg("indices"));
  m.def("max_pool2d_backward", &max_backward, py::arg("dy"), py::arg("indices"), py::arg("x_shape"),
        py::arg("kernel_size"), py::arg("stride"), py::arg("padding"), py::arg("dilation"), py::arg("wide"),
        py::arg("out"));
  m.def("average_pool", &average, py::arg("op"), py::arg("x"), py::arg("rows"), py::arg("columns"), py::arg("out"));
  m.def("average_pool_backward", &average_backward, py::arg("op"), py::arg("dy"), py::arg("x_shape"), py::arg("rows"),
        py::arg("columns"), py::arg("out"));
}

}  // namespace medmpi
