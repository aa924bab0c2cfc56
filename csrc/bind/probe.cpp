#include <chrono>

#include "bind/call.h"

namespace medmpi {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

}  // namespace

void bind_probe(py::module_& m) {
  m.def(
      "probe_gflops",
      [](int64_t rounds) {
        float sink[64];
        py::gil_scoped_release nogil;
        const auto start = Clock::now();
        const int64_t operations = host_ops().probe->multiply_add(rounds, sink);
        return static_cast<double>(operations) / seconds_since(start) / 1e9;
      },
      py::arg("rounds"));
  m.def(
      "probe_copy",
      [](const py::object& x, const py::object& y) {
        Call call("probe_copy");
        const auto in = call.flat_in<float>("x", x);
        const auto out = call.flat_out<float>("y", y, in.size());
        const auto start = Clock::now();
        const auto kernel = host_ops().probe->copy;
        call.run(kernel, [&] { kernel(in.size(), in.data, out.data); });
        return static_cast<double>(in.size()) * 8 / seconds_since(start) / 1e9;
      },
      py::arg("x"), py::arg("y"));
}

}  // namespace medmpi
