#include <pybind11/stl.h>

#include <algorithm>

#include "bind/call.h"
#include "ops/weight_cache.h"

namespace medmpi {
namespace {

using Sizes = std::array<int64_t, 4>;

/// (stride_h, stride_w, dilation_h, dilation_w, top, bottom, left, right, groups)
using Window = std::array<int64_t, 9>;

/// Checks that the sizes fit together; the kernels trust them afterwards.
Conv2dShape shape_of(const Call& call, const Sizes& x, const Sizes& weight, const Window& w) {
  const auto [sh, sw, dh, dw, top, bottom, left, right, groups] = w;
  const Conv2dShape g{x[0], x[1], x[2], x[3], weight[0], weight[1], weight[3], groups,
                      sh,   sw,   dh,   dw,   top,       bottom,    left,      right};
  constexpr int64_t kLimit = int64_t{1} << 31;
  call.require(sh >= 1 && sw >= 1 && sh < kLimit && sw < kLimit,
               [&] { return "stride is " + text(Sizes{sh, sw}) + ", expected 1 or more"; });
  call.require(dh >= 1 && dw >= 1 && dh < kLimit && dw < kLimit, "dilation is too small or large, expected 1 or more");
  call.require(top >= 0 && left >= 0 && top < kLimit && left < kLimit && bottom < kLimit && right < kLimit,
               [&] { return "padding is " + text(Sizes{top, bottom, left, right}) + ", expected 0 or more"; });
  call.require(groups >= 1, [&] { return "groups is " + text(groups) + ", expected 1 or more"; });
  call.require(g.r >= 1 && g.s >= 1 && weight[2] >= 1 && g.k >= 1,
               [&] { return "weight has shape " + text(weight) + ", expected sizes of 1 or more"; });
  call.require(g.c == weight[2] * groups,
               [&] { return "weight takes " + text(weight[2] * groups) + " channels, x has " + text(g.c); });
  call.require(g.k % groups == 0, [&] {
    return "weight gives " + text(g.k) + " channels, expected a multiple of groups = " + text(groups);
  });
  call.require(g.h + top + bottom > dh * (g.r - 1) && g.w + left + right > dw * (g.s - 1), [&] {
    return "x has shape " + text(x) + ", smaller with its padding than the filter of shape " + text(weight);
  });
  // A stride beyond the image and the dilation of a single tap change nothing: kernels get the smallest that does not.
  Conv2dShape least = g;
  least.stride_h = std::min(sh, g.h + top + bottom), least.stride_w = std::min(sw, g.w + left + right);
  if (g.r == 1) least.dilation_h = 1;
  if (g.s == 1) least.dilation_w = 1;
  return least;
}

Sizes output(const Conv2dShape& g) { return {g.n, g.out_h(), g.out_w(), g.k}; }

Conv2dAlgo algo_of(const Call& call, const std::string& name, const Conv2dShape& g) {
  if (name == "auto") return Conv2dAlgo::kAuto;
  if (name == "direct") return Conv2dAlgo::kDirect;
  call.require(name == "winograd", [&] { return "algo is '" + name + "', expected 'auto', 'direct' or 'winograd'"; });
  call.require(g.fits_winograd(),
               "algo is 'winograd', expected a 3 x 3 or 5 x 5 filter with stride 1, dilation 1 and groups 1");
  return Conv2dAlgo::kWinograd;
}

/// All that the packed weights of a forward pass depend on; the number of images is not part of it.
WeightCache::Key key_of(const Conv2dShape& g, Conv2dAlgo algo, const Ops& ops) {
  return {g.h,
          g.w,
          g.c,
          g.r,
          g.s,
          g.k,
          g.groups,
          g.stride_h,
          g.stride_w,
          g.dilation_h,
          g.dilation_w,
          g.pad_top,
          g.pad_bottom,
          g.pad_left,
          g.pad_right,
          static_cast<int64_t>(algo),
          reinterpret_cast<intptr_t>(&ops)};
}

void forward(const py::object& x, const py::object& weight, const py::object& bias, const py::object& residual,
             const py::object& mean, const py::object& m2, const py::object& out, const Window& window,
             const std::string& algo, bool relu, WeightCache* cache) {
  Call call("conv2d");
  const auto in = call.in<float, 4>("x", x);
  const auto filter = call.in<float, 4>("weight", weight);
  const auto g = shape_of(call, in.shape, filter.shape, window);
  const auto b = call.maybe<float, 1>("bias", bias, {g.k});
  const auto y = call.out<float, 4>("out", out, output(g));
  const auto other = call.maybe<float, 4>("residual", residual, output(g));
  const auto mu = call.maybe_out<double, 1>("mean", mean, {g.k});
  const auto squares = call.maybe_out<double, 1>("m2", m2, {g.k});
  const auto how = algo_of(call, algo, g);
  const auto kernel = call.ops().conv2d->forward;
  const Conv2dEpilogue epilogue{b.data, other.data, relu, mu.data, squares.data};
  if (Recording* recording = Recording::active(); recording && cache) recording->keep(py::cast(cache));
  const Ops* ops = &call.ops();
  if (call.on_device()) cache = nullptr;  // it is in host memory
  call.launch(kernel, [=] {
    const WeightCache::Use use(cache, cache ? key_of(g, how, *ops) : WeightCache::Key{});
    kernel(g, how, in.data, filter.data, epilogue, y.data);
  });
}

void backward_data(const std::string& name, const py::object& dy, const py::object& weight, const py::object& bias,
                   const py::object& out, const Sizes& x_shape, const Window& window, const std::string& algo) {
  Call call(name.c_str());
  const auto filter = call.in<float, 4>("weight", weight);
  const auto g = shape_of(call, x_shape, filter.shape, window);
  const auto grad = call.in<float, 4>("dy", dy, output(g));
  const auto b = call.maybe<float, 1>("bias", bias, {g.c});
  const auto dx = call.out<float, 4>("out", out, x_shape);
  const auto how = algo_of(call, algo, g);
  const auto kernel = call.ops().conv2d->backward_data;
  call.launch(kernel, [=] { kernel(g, how, grad.data, filter.data, b.data, dx.data); });
}

bool backward_data_onto(const std::string& name, const py::object& dy, const py::object& weight,
                        const py::object& before, const py::object& out, const Sizes& x_shape, const Window& window,
                        const std::string& algo) {
  Call call(name.c_str());
  const auto filter = call.in<float, 4>("weight", weight);
  const auto g = shape_of(call, x_shape, filter.shape, window);
  const auto grad = call.in<float, 4>("dy", dy, output(g));
  const auto first = call.in<float, 4>("add", before, x_shape);
  const auto dx = call.out<float, 4>("out", out, x_shape, first.data);
  const auto how = algo_of(call, algo, g);
  const auto kernel = call.ops().conv2d->backward_data_onto;
  if (!kernel) return false;
  bool added = false;
  call.run(kernel, [&] { added = kernel(g, how, grad.data, filter.data, first.data, dx.data); });
  return added;
}

void backward_weight(const std::string& name, const py::object& dy, const py::object& x, const py::object& out,
                     const Sizes& weight_shape, const Window& window, const std::string& algo) {
  Call call(name.c_str());
  const auto in = call.in<float, 4>("x", x);
  const auto g = shape_of(call, in.shape, weight_shape, window);
  const auto grad = call.in<float, 4>("dy", dy, output(g));
  const auto dweight = call.out<float, 4>("out", out, weight_shape);
  const auto how = algo_of(call, algo, g);
  const auto kernel = call.ops().conv2d->backward_weight;
  call.run(kernel, [&] { kernel(g, how, grad.data, in.data, dweight.data); });
}

void sum_channels(const py::object& dy, const py::object& out, int64_t channels) {
  Call call("sum_channels");
  const auto grad = call.flat_in<float>("dy", dy);
  const auto sums = call.out<float, 1>("out", out, {channels});
  call.require(channels > 0 && grad.size() % channels == 0,
               [&] { return "dy does not have " + text(channels) + " channels"; });
  const auto kernel = call.ops().conv2d->sum_channels;
  call.run(kernel, [&] { kernel(grad.size() / channels, channels, grad.data, sums.data); });
}

}  // namespace

void bind_conv2d(py::module_& m) {
  py::class_<WeightCache>(m, "WeightCache",
                          "Keeps one layer's weights between calls of conv2d in the order its kernel wants them.")
      .def(py::init<>())
      .def("clear", &WeightCache::clear, py::call_guard<py::gil_scoped_release>())
      .def("nbytes", &WeightCache::size);
  m.def("conv2d", &forward, py::arg("x"), py::arg("weight"), py::arg("bias"), py::arg("residual"), py::arg("mean"),
        py::arg("m2"), py::arg("out"), py::arg("window"), py::arg("algo"), py::arg("relu"), py::arg("cache"));
  m.def("conv2d_backward_data", &backward_data, py::arg("name"), py::arg("dy"), py::arg("weight"), py::arg("bias"),
        py::arg("out"), py::arg("x_shape"), py::arg("window"), py::arg("algo"));
  m.def("conv2d_backward_data_onto", &backward_data_onto, py::arg("name"), py::arg("dy"), py::arg("weight"),
        py::arg("before"), py::arg("out"), py::arg("x_shape"), py::arg("window"), py::arg("algo"));
  m.def("conv2d_backward_weight", &backward_weight, py::arg("name"), py::arg("dy"), py::arg("x"), py::arg("out"),
        py::arg("weight_shape"), py::arg("window"), py::arg("algo"));
  m.def("sum_channels", &sum_channels, py::arg("dy"), py::arg("out"), py::arg("channels"));
}

}  // namespace medmpi
