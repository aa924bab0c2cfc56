#include <pybind11/stl.h>

#include <new>

#include "bind/call.h"

namespace medmpi {
namespace {

using Object = const py::object&;

/// "labels[1, 2]" for a flat position.
std::string place(Object labels, int64_t position) {
  const auto shape = labels.attr("shape").cast<std::vector<int64_t>>();
  std::string at;
  for (size_t i = shape.size(); i-- > 0; position /= shape[i])
    at = std::to_string(position % shape[i]) + (at.empty() ? "" : ", ") + at;
  return "labels[" + at + "]";
}

/// Raises where a label is no class; returns the sum of the labels' weights.
double checked(const Call& call, const LossOps* ops, Object labels, const Tensor<const int64_t, 1>& in, int64_t k,
               const float* weight) {
  LabelCheck found{};
  bool done = false;
  call.run(ops->check_labels, [&] { done = ops->check_labels(in.size(), k, in.data, weight, &found); });
  if (!done) throw std::bad_alloc();
  if (found.outside >= 0) {
    const int64_t* at = in.data + found.outside;
    int64_t label = 0;
    if (call.on_device())
      cuda::copy_to_host(&label, at, sizeof label);
    else
      label = *at;
    call.bad(place(labels, found.outside) + " is " + text(label) + ", expected 0 to " + text(k - 1));
  }
  return found.weights;
}

/// Runs kernel(where), which writes a loss where the arrays are, and returns it.
template <typename Entry, typename Kernel>
double value_of(const Call& call, Entry* built, const Kernel& kernel) {
  double loss = 0.0;
  bool done = false;
  if (call.on_device()) {
    DeviceMemory held(sizeof loss);
    auto* where = reinterpret_cast<double*>(held.data());
    call.run(built, [&] {
      done = kernel(where);
      cuda::copy_to_host(&loss, where, sizeof loss);
    });
  } else {
    call.run(built, [&] { done = kernel(&loss); });
  }
  if (!done) throw std::bad_alloc();
  return loss;
}

void check_denominator(const Call& call, double denominator) {
  call.require(std::isfinite(denominator) && denominator > 0,
               [&] { return "denominator is " + std::to_string(denominator) + ", expected a finite number > 0"; });
}

void check_rows(const Call& call, int64_t m, int64_t k, int64_t labels) {
  call.require(k > 0, "logits has 0 classes, expected 1 or more");
  call.require(labels == m,
               [&] { return "labels has " + text(labels) + " values, expected " + text(m) + ", one a row of logits"; });
}

void check_dice(const Call& call, int64_t k, int64_t first, double smooth) {
  call.require(k > first, [&] { return "logits has " + text(k) + " classes, expected more than " + text(first); });
  call.require(std::isfinite(smooth) && smooth > 0,
               [&] { return "smooth is " + std::to_string(smooth) + ", expected a finite number > 0"; });
}

double cross_entropy(Object logits, Object labels, Object weight, Object denominator, Object out) {
  Call call("softmax_cross_entropy");
  const auto x = call.rows_in<float>("logits", logits);
  const auto l = call.flat_in<int64_t>("labels", labels);
  const int64_t m = x.shape[0], k = x.shape[1];
  check_rows(call, m, k, l.size());
  const auto w = call.maybe<float, 1>("weight", weight, {k});
  const auto dx = call.rows_out<float>("out", out, x.shape, x.data);
  const auto* ops = call.ops().loss;
  const double weights = checked(call, ops, labels, l, k, w.data);
  double by = weights;
  if (!denominator.is_none()) {
    by = denominator.cast<double>();
    check_denominator(call, by);
  } else {
    call.require(m == 0 || by > 0,
                 [&] { return "weight sums to " + std::to_string(by) + " over the labels, expected more than 0"; });
  }
  return value_of(call, ops->softmax_cross_entropy, [&](double* loss) {
    return ops->softmax_cross_entropy(m, k, x.data, l.data, w.data, by, loss, dx.data);
  });
}

double dice(Object logits, Object labels, double smooth, bool include_background, Object denominator, Object out) {
  Call call("dice_loss");
  const auto x = call.in<float, 4>("logits", logits);
  const int64_t n = x.shape[0], m = x.shape[1] * x.shape[2], k = x.shape[3];
  const auto l = call.in<int64_t, 3>("labels", labels, {n, x.shape[1], x.shape[2]});
  const auto dx = call.out<float, 4>("out", out, x.shape, x.data);
  const int64_t first = include_background ? 0 : 1;
  check_dice(call, k, first, smooth);
  const double by = denominator.is_none() ? static_cast<double>(n ? n : 1) : denominator.cast<double>();
  check_denominator(call, by);
  const auto* ops = call.ops().loss;
  checked(call, ops, labels, Tensor<const int64_t, 1>{l.data, {l.size()}}, k, nullptr);
  return value_of(call, ops->dice,
                  [&](double* loss) { return ops->dice(n, m, k, x.data, l.data, smooth, first, by, loss, dx.data); });
}

// Their results stay on the device.

void cross_entropy_by(Object logits, Object labels, Object weight, Object denominator, Object loss, Object out) {
  Call call("softmax_cross_entropy_by");
  const auto x = call.rows_in<float>("logits", logits);
  const auto l = call.flat_in<int64_t>("labels", labels);
  const int64_t m = x.shape[0], k = x.shape[1];
  check_rows(call, m, k, l.size());
  const auto w = call.maybe<float, 1>("weight", weight, {k});
  const auto by = call.in<double, 1>("denominator", denominator, {1});
  const auto value = call.out<double, 1>("loss", loss, {1});
  const auto dx = call.rows_out<float>("out", out, x.shape, x.data);
  const auto kernel = call.ops().loss->softmax_cross_entropy_by;
  call.run(kernel, [&] { kernel(m, k, x.data, l.data, w.data, by.data, value.data, dx.data); });
}

void dice_by(Object logits, Object labels, double smooth, bool include_background, Object denominator, Object loss,
             Object out) {
  Call call("dice_loss_by");
  const auto x = call.in<float, 4>("logits", logits);
  const int64_t n = x.shape[0], m = x.shape[1] * x.shape[2], k = x.shape[3];
  const auto l = call.in<int64_t, 3>("labels", labels, {n, x.shape[1], x.shape[2]});
  const auto by = call.in<double, 1>("denominator", denominator, {1});
  const auto value = call.out<double, 1>("loss", loss, {1});
  const auto dx = call.out<float, 4>("out", out, x.shape, x.data);
  const int64_t first = include_background ? 0 : 1;
  check_dice(call, k, first, smooth);
  const auto kernel = call.ops().loss->dice_by;
  call.run(kernel, [&] { kernel(n, m, k, x.data, l.data, smooth, first, by.data, value.data, dx.data); });
}

void count_correct(Object logits, Object labels, Object count) {
  Call call("count_correct");
  const auto x = call.rows_in<float>("logits", logits);
  const auto l = call.flat_in<int64_t>("labels", labels);
  call.require(l.size() == x.shape[0] && x.shape[1] > 0, "labels and logits do not fit, expected one a row of logits");
  const auto found = call.out<int64_t, 1>("count", count, {1});
  const auto kernel = call.ops().loss->count_correct;
  call.run(kernel, [&] { kernel(x.shape[0], x.shape[1], x.data, l.data, found.data); });
}

void softmax(Object x, Object out) {
  Call call("softmax");
  const auto in = call.rows_in<float>("x", x);
  const auto y = call.rows_out<float>("out", out, in.shape, in.data);
  const auto kernel = call.ops().loss->softmax;
  call.launch(kernel, [=] {
    if (in.size()) kernel(in.shape[0], in.shape[1], in.data, y.data);
  });
}

}  // namespace

void bind_loss(py::module_& m) {
  m.def("softmax", &softmax, py::arg("x"), py::arg("out"));
  m.def("softmax_cross_entropy", &cross_entropy, py::arg("logits"), py::arg("labels"), py::arg("weight"),
        py::arg("denominator"), py::arg("out"));
  m.def("dice_loss", &dice, py::arg("logits"), py::arg("labels"), py::arg("smooth"), py::arg("include_background"),
        py::arg("denominator"), py::arg("out"));
  m.def("softmax_cross_entropy_by", &cross_entropy_by, py::arg("logits"), py::arg("labels"), py::arg("weight"),
        py::arg("denominator"), py::arg("loss"), py::arg("out"));
  m.def("dice_loss_by", &dice_by, py::arg("logits"), py::arg("labels"), py::arg("smooth"),
        py::arg("include_background"), py::arg("denominator"), py::arg("loss"), py::arg("out"));
  m.def("count_correct", &count_correct, py::arg("logits"), py::arg("labels"), py::arg("count"));
}

}  // namespace medmpi
