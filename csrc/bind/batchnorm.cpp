#include <new>

#include "bind/call.h"

namespace medmpi {
namespace {

using Object = const py::object&;

std::array<int64_t, 1> channels_of(const Call& call, const Tensor<const float, 2>& x) {
  call.require(x.shape[1] > 0, "x has 0 channels, expected 1 or more");
  return {x.shape[1]};
}

void enough(bool done) {
  if (!done) throw std::bad_alloc();
}

void check_eps(const Call& call, double eps) {
  call.require(std::isfinite(eps) && eps >= 0,
               [&] { return "eps is " + std::to_string(eps) + ", expected a finite number >= 0"; });
}

void statistics(Object x, Object mean, Object m2) {
  Call call("batch_norm_statistics");
  const auto in = call.rows_in<float>("x", x);
  const auto c = channels_of(call, in);
  const auto mu = call.out<double, 1>("mean", mean, c);
  const auto squares = call.out<double, 1>("m2", m2, c);
  const auto kernel = call.ops().batchnorm->statistics;
  bool done = false;
  call.run(kernel, [&] { done = kernel(in.shape[0], c[0], in.data, mu.data, squares.data); });
  enough(done);
}

/// Statistics, then apply; mean and rstd are results.
void forward(Object x, Object gamma, Object beta, double eps, bool relu, Object residual, Object out, Object mean,
             Object rstd) {
  Call call("batch_norm");
  const auto in = call.rows_in<float>("x", x);
  const auto c = channels_of(call, in);
  const auto scale = call.in<float, 1>("gamma", gamma, c);
  const auto shift = call.in<float, 1>("beta", beta, c);
  Tensor<const float, 2> add{};
  if (!residual.is_none()) add = call.rows_in<float>("residual", residual, in.shape);
  const auto y = call.rows_out<float>("out", out, in.shape, in.data);
  const auto mu = call.out<double, 1>("mean", mean, c);
  const auto r = call.out<double, 1>("rstd", rstd, c);
  check_eps(call, eps);
  const auto* ops = call.ops().batchnorm;
  bool done = false;
  call.run(ops->statistics, [&] {
    done = ops->statistics(in.shape[0], c[0], in.data, mu.data, r.data);
    if (!done) return;
    ops->deviation(c[0], static_cast<double>(in.shape[0]), eps, r.data, r.data);
    ops->apply(in.shape[0], c[0], in.data, scale.data, shift.data, mu.data, r.data, add.data, relu, y.data);
  });
  enough(done);
}

void apply(Object x, Object gamma, Object beta, Object mean, Object rstd, bool relu, Object residual, Object out) {
  Call call("batch_norm_apply");
  const auto in = call.rows_in<float>("x", x);
  const auto c = channels_of(call, in);
  const auto scale = call.in<float, 1>("gamma", gamma, c);
  const auto shift = call.in<float, 1>("beta", beta, c);
  const auto mu = call.in<double, 1>("mean", mean, c);
  const auto r = call.in<double, 1>("rstd", rstd, c);
  Tensor<const float, 2> add{};
  if (!residual.is_none()) add = call.rows_in<float>("residual", residual, in.shape);
  const auto y = call.rows_out<float>("out", out, in.shape, in.data);
  const auto kernel = call.ops().batchnorm->apply;
  call.launch(kernel, [=] {
    kernel(in.shape[0], c[0], in.data, scale.data, shift.data, mu.data, r.data, add.data, relu, y.data);
  });
}

/// What both passes of backward read: the gradient, and how the ReLU after the normalisation masked it.
struct Backward {
  Tensor<const float, 2> x, dy, y;
  Tensor<const float, 1> gamma, beta;
  Tensor<const double, 1> mean, rstd;
  std::array<int64_t, 1> c;

  Backward(Call& call, Object dy_, Object x_, Object gamma_, Object beta_, Object mean_, Object rstd_, Object y_)
      : x(call.rows_in<float>("x", x_)), c(channels_of(call, x)) {
    dy = call.rows_in<float>("dy", dy_, x.shape);
    gamma = call.maybe<float, 1>("gamma", gamma_, c);
    beta = call.maybe<float, 1>("beta", beta_, c);
    mean = call.in<double, 1>("mean", mean_, c);
    rstd = call.in<double, 1>("rstd", rstd_, c);
    if (!y_.is_none()) y = call.rows_in<float>("y", y_, x.shape);
    call.require(!y.data || !beta.data, "y and beta are both given, expected one of them to mask dy");
    call.require(gamma.data || !beta.data, "beta is given without gamma, expected both to compute the mask again");
  }
};

void backward_reduce(Object dy, Object x, Object gamma, Object beta, Object mean, Object rstd, Object y, Object sum_dy,
                     Object sum_dy_xhat) {
  Call call("batch_norm_backward_reduce");
  const Backward b(call, dy, x, gamma, beta, mean, rstd, y);
  const auto s = call.out<double, 1>("sum_dy", sum_dy, b.c);
  const auto q = call.out<double, 1>("sum_dy_xhat", sum_dy_xhat, b.c);
  const auto kernel = call.ops().batchnorm->backward_reduce;
  bool done = false;
  call.run(kernel, [&] {
    done = kernel(b.x.shape[0], b.c[0], b.dy.data, b.x.data, b.y.data, b.gamma.data, b.beta.data, b.mean.data,
                  b.rstd.data, s.data, q.data);
  });
  enough(done);
}

void backward_apply(Object dy, Object x, Object gamma, Object beta, Object mean, Object rstd, Object sum_dy,
                    Object sum_dy_xhat, double count, Object y, Object dresidual, Object out) {
  Call call("batch_norm_backward_apply");
  const Backward b(call, dy, x, gamma, beta, mean, rstd, y);
  const auto s = call.in<double, 1>("sum_dy", sum_dy, b.c);
  const auto q = call.in<double, 1>("sum_dy_xhat", sum_dy_xhat, b.c);
  const auto dx = call.rows_out<float>("out", out, b.x.shape, b.dy.data);
  Tensor<float, 2> masked{};
  if (!dresidual.is_none()) masked = call.rows_out<float>("dresidual", dresidual, b.x.shape);
  call.require(b.gamma.data || b.x.shape[0] == 0, "gamma is None, expected a float32 array");
  call.require(b.x.shape[0] == 0 || (std::isfinite(count) && count > 0),
               [&] { return "count is " + std::to_string(count) + ", expected a number > 0"; });
  const auto kernel = call.ops().batchnorm->backward_apply;
  call.run(kernel, [&] {
    kernel(b.x.shape[0], b.c[0], b.dy.data, b.x.data, b.y.data, b.gamma.data, b.beta.data, b.mean.data, b.rstd.data,
           s.data, q.data, count, masked.data, dx.data);
  });
}

/// Both passes; dgamma and dbeta are added to.
void backward(Object dy, Object x, Object gamma, Object beta, Object mean, Object rstd, Object y, Object dgamma,
              Object dbeta, Object dresidual, Object out, Object sum_dy, Object sum_dy_xhat) {
  Call call("batch_norm_backward");
  const Backward b(call, dy, x, gamma, beta, mean, rstd, y);
  call.require(b.gamma.data, "gamma is None, expected a float32 array");
  const auto dg = call.out<float, 1>("dgamma", dgamma, b.c);
  const auto db = call.out<float, 1>("dbeta", dbeta, b.c);
  const auto dx = call.rows_out<float>("out", out, b.x.shape, b.dy.data);
  Tensor<float, 2> masked{};
  if (!dresidual.is_none()) masked = call.rows_out<float>("dresidual", dresidual, b.x.shape);
  const auto s = call.out<double, 1>("sum_dy", sum_dy, b.c);
  const auto q = call.out<double, 1>("sum_dy_xhat", sum_dy_xhat, b.c);
  const auto* ops = call.ops().batchnorm;
  bool done = false;
  call.run(ops->backward_reduce, [&] {
    const int64_t m = b.x.shape[0], c = b.c[0];
    done = ops->backward_reduce(m, c, b.dy.data, b.x.data, b.y.data, b.gamma.data, b.beta.data, b.mean.data,
                                b.rstd.data, s.data, q.data);
    if (!done) return;
    ops->add_sums(c, q.data, dg.data);
    ops->add_sums(c, s.data, db.data);
    ops->backward_apply(m, c, b.dy.data, b.x.data, b.y.data, b.gamma.data, b.beta.data, b.mean.data, b.rstd.data,
                        s.data, q.data, static_cast<double>(m), masked.data, dx.data);
  });
  enough(done);
}

void deviation(Object m2, double count, double eps, Object out) {
  Call call("batch_norm_deviation");
  const auto squares = call.in<double, 1>("m2", m2);
  const auto rstd = call.out<double, 1>("out", out, squares.shape, squares.data);
  check_eps(call, eps);
  const auto kernel = call.ops().batchnorm->deviation;
  call.run(kernel, [&] { kernel(squares.size(), count, eps, squares.data, rstd.data); });
}

void from_running(Object mean, Object var, double eps, Object out_mean, Object out_rstd) {
  Call call("batch_norm_inference");
  const auto mu = call.in<float, 1>("mean", mean);
  const auto variance = call.in<float, 1>("var", var, mu.shape);
  const auto to_mean = call.out<double, 1>("out_mean", out_mean, mu.shape);
  const auto to_rstd = call.out<double, 1>("out_rstd", out_rstd, mu.shape);
  check_eps(call, eps);
  const auto kernel = call.ops().batchnorm->from_running;
  call.launch(kernel, [=] { kernel(mu.size(), eps, mu.data, variance.data, to_mean.data, to_rstd.data); });
}

void track(Object mean, Object m2, double count, double rate, Object running_mean, Object running_var) {
  Call call("batch_norm_track");
  const auto mu = call.in<double, 1>("mean", mean);
  const auto squares = call.in<double, 1>("m2", m2, mu.shape);
  const auto to_mean = call.out<float, 1>("running_mean", running_mean, mu.shape);
  const auto to_var = call.out<float, 1>("running_var", running_var, mu.shape);
  call.require(count > 1, [&] { return "count is " + std::to_string(count) + ", expected more than 1"; });
  const auto kernel = call.ops().batchnorm->track;
  call.run(kernel, [&] { kernel(mu.size(), count, rate, mu.data, squares.data, to_mean.data, to_var.data); });
}

void add_sums(Object sums, Object out) {
  Call call("batch_norm_add_sums");
  const auto in = call.in<double, 1>("sums", sums);
  const auto y = call.out<float, 1>("out", out, in.shape);
  const auto kernel = call.ops().batchnorm->add_sums;
  call.run(kernel, [&] { kernel(in.size(), in.data, y.data); });
}

}  // namespace

void bind_batchnorm(py::module_& m) {
  m.def("batch_norm_deviation", &deviation, py::arg("m2"), py::arg("count"), py::arg("eps"), py::arg("out"));
  m.def("batch_norm_from_running", &from_running, py::arg("mean"), py::arg("var"), py::arg("eps"), py::arg("out_mean"),
        py::arg("out_rstd"));
  m.def("batch_norm_track", &track, py::arg("mean"), py::arg("m2"), py::arg("count"), py::arg("rate"),
        py::arg("running_mean"), py::arg("running_var"));
  m.def("batch_norm_add_sums", &add_sums, py::arg("sums"), py::arg("out"));
  m.def("batch_norm_statistics", &statistics, py::arg("x"), py::arg("mean"), py::arg("m2"));
  m.def("batch_norm", &forward, py::arg("x"), py::arg("gamma"), py::arg("beta"), py::arg("eps"), py::arg("relu"),
        py::arg("residual"), py::arg("out"), py::arg("mean"), py::arg("rstd"));
  m.def("batch_norm_apply", &apply, py::arg("x"), py::arg("gamma"), py::arg("beta"), py::arg("mean"), py::arg("rstd"),
        py::arg("relu"), py::arg("residual"), py::arg("out"));
  m.def("batch_norm_backward_reduce", &backward_reduce, py::arg("dy"), py::arg("x"), py::arg("gamma"), py::arg("beta"),
        py::arg("mean"), py::arg("rstd"), py::arg("y"), py::arg("sum_dy"), py::arg("sum_dy_xhat"));
  m.def("batch_norm_backward_apply", &backward_apply, py::arg("dy"), py::arg("x"), py::arg("gamma"), py::arg("beta"),
        py::arg("mean"), py::arg("rstd"), py::arg("sum_dy"), py::arg("sum_dy_xhat"), py::arg("count"), py::arg("y"),
        py::arg("dresidual"), py::arg("out"));
  m.def("batch_norm_backward", &backward, py::arg("dy"), py::arg("x"), py::arg("gamma"), py::arg("beta"),
        py::arg("mean"), py::arg("rstd"), py::arg("y"), py::arg("dgamma"), py::arg("dbeta"), py::arg("dresidual"),
        py::arg("out"), py::arg("sum_dy"), py::arg("sum_dy_xhat"));
}

}  // namespace medmpi
