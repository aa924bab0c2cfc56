#include "bind/call.h"

namespace medmpi {
namespace {

using Object = const py::object&;

void apply(const char* op, const char* name, Object x, double p, uint64_t seed, uint64_t offset, Object out) {
  Call call(op);
  const auto in = call.flat_in<float>(name, x);
  const auto y = call.flat_out<float>("out", out, in.size(), in.data);
  call.require(p >= 0 && p <= 1, [&] { return "p is " + std::to_string(p) + ", expected 0 <= p <= 1"; });
  const auto limit = static_cast<uint64_t>(std::ldexp(p, 32) + 0.5);
  const float scale = p < 1 ? static_cast<float>(1.0 / (1.0 - p)) : 0.0f;
  const auto kernel = call.ops().dropout->apply;
  call.run(kernel, [&] { kernel(in.size(), limit, scale, seed, offset, in.data, y.data); });
}

/// Forward and backward alike. A key in memory may be another one when the call is made again.
void apply_keyed(Object x, double p, Object key, Object out) {
  Call call("dropout_keyed");
  const auto in = call.flat_in<float>("x", x);
  const auto k = call.in<int64_t, 1>("key", key, {2});
  const auto y = call.flat_out<float>("out", out, in.size(), in.data);
  call.require(p >= 0 && p <= 1, [&] { return "p is " + std::to_string(p) + ", expected 0 <= p <= 1"; });
  const auto limit = static_cast<uint64_t>(std::ldexp(p, 32) + 0.5);
  const float scale = p < 1 ? static_cast<float>(1.0 / (1.0 - p)) : 0.0f;
  const auto kernel = call.ops().dropout->apply_keyed;
  call.run(kernel, [&] { kernel(in.size(), limit, scale, k.data, in.data, y.data); });
}

}  // namespace

void bind_dropout(py::module_& m) {
  m.def(
      "dropout",
      [](Object x, double p, uint64_t seed, uint64_t offset, Object out) {
        apply("dropout", "x", x, p, seed, offset, out);
      },
      py::arg("x"), py::arg("p"), py::arg("seed"), py::arg("offset"), py::arg("out"));
  m.def(
      "dropout_backward",
      [](Object dy, double p, uint64_t seed, uint64_t offset, Object out) {
        apply("dropout_backward", "dy", dy, p, seed, offset, out);
      },
      py::arg("dy"), py::arg("p"), py::arg("seed"), py::arg("offset"), py::arg("out"));
  m.def("dropout_keyed", &apply_keyed, py::arg("x"), py::arg("p"), py::arg("key"), py::arg("out"));
}

}  // namespace medmpi
