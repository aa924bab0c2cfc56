#include "bind/call.h"

namespace medmpi {
namespace {

using Object = const py::object&;

void check(const Call& call, const char* name, double value, double low, double below) {
  const bool open = std::isinf(below);
  call.require(std::isfinite(value) && value >= low && value < below, [&] {
    return std::string(name) + " is " + std::to_string(value) + ", expected " +
           (open ? "a finite number >= 0" : "0 <= " + std::string(name) + " < 1");
  });
}

constexpr double kInfinity = std::numeric_limits<double>::infinity();

void sgd(Object value, Object grad, Object velocity, double lr, double momentum, double dampening, bool nesterov,
         double weight_decay) {
  Call call("sgd_step");
  const auto g = call.flat_in<float>("grad", grad);
  const auto p = call.flat_out<float>("value", value, g.size());
  Tensor<float, 1> v{};
  if (!velocity.is_none()) v = call.flat_out<float>("velocity", velocity, g.size());
  check(call, "lr", lr, 0, kInfinity);
  check(call, "momentum", momentum, 0, kInfinity);
  check(call, "weight_decay", weight_decay, 0, kInfinity);
  call.require(std::isfinite(dampening),
               [&] { return "dampening is " + std::to_string(dampening) + ", expected a finite number"; });
  call.require(momentum == 0 || !velocity.is_none(), "velocity is None, expected an array where momentum is not 0");
  call.require(!nesterov || (momentum > 0 && dampening == 0),
               "nesterov needs momentum above 0 and dampening 0, expected both");
  const SgdStep step{lr, momentum, dampening, weight_decay, nesterov};
  const auto kernel = call.ops().optimizer->sgd;
  call.run(kernel, [&] { kernel(g.size(), step, g.data, p.data, momentum == 0 ? nullptr : v.data); });
}

void adam(Object value, Object grad, Object m, Object v, double lr, double beta1, double beta2, double eps,
          double weight_decay, bool decoupled, int64_t step) {
  Call call("adam_step");
  const auto g = call.flat_in<float>("grad", grad);
  const auto p = call.flat_out<float>("value", value, g.size());
  const auto first = call.flat_out<float>("m", m, g.size());
  const auto second = call.flat_out<float>("v", v, g.size());
  check(call, "lr", lr, 0, kInfinity);
  check(call, "beta1", beta1, 0, 1);
  check(call, "beta2", beta2, 0, 1);
  check(call, "eps", eps, 0, kInfinity);
  check(call, "weight_decay", weight_decay, 0, kInfinity);
  call.require(step >= 1, [&] { return "step is " + text(step) + ", expected 1 or more"; });
  const AdamStep options{lr, beta1, beta2, eps, weight_decay, decoupled, step};
  const auto kernel = call.ops().optimizer->adam;
  call.run(kernel, [&] { kernel(g.size(), options, g.data, p.data, first.data, second.data); });
}

}  // namespace

void bind_optimizer(py::module_& m) {
  m.def("sgd_step", &sgd, py::arg("value"), py::arg("grad"), py::arg("velocity"), py::arg("lr"), py::arg("momentum"),
        py::arg("dampening"), py::arg("nesterov"), py::arg("weight_decay"));
  m.def("adam_step", &adam, py::arg("value"), py::arg("grad"), py::arg("m"), py::arg("v"), py::arg("lr"),
        py::arg("beta1"), py::arg("beta2"), py::arg("eps"), py::arg("weight_decay"), py::arg("decoupled"),
        py::arg("step"));
}

}  // namespace medmpi
