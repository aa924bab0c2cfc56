// Numbers on their way between nodes: float32 rounded to bfloat16 (its upper half), and sums of such. Compiled once
// for the baseline: the same bits whatever table is in use.
#include "bind/call.h"

namespace medmpi {
namespace {

/// To the nearest, ties to even; a value that is no number stays one.
inline uint16_t rounded(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline float widened(uint16_t x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float y;
  std::memcpy(&y, &bits, sizeof y);
  return y;
}

void to_bfloat16(const py::object& x, const py::object& out) {
  Call call("to_bfloat16");
  const auto from = call.flat_in<float>("x", x);
  const auto to = call.flat_out<uint16_t>("out", out, from.size());
  py::gil_scoped_release nogil;
  for (int64_t i = 0; i < from.size(); ++i) to.data[i] = rounded(from.data[i]);
}

/// The sums of the rows of `parts` in their order, in float32.
void sum_bfloat16(const py::object& parts, const py::object& out) {
  Call call("sum_bfloat16");
  const auto p = call.in<uint16_t, 2>("parts", parts);
  const int64_t n = p.shape[1];
  const auto y = call.flat_out<float>("out", out, n);
  call.require(p.shape[0] > 0, "parts has no rows, expected one at least");
  py::gil_scoped_release nogil;
  for (int64_t i = 0; i < n; ++i) y.data[i] = widened(p.data[i]);
  for (int64_t r = 1; r < p.shape[0]; ++r)
    for (int64_t i = 0; i < n; ++i) y.data[i] += widened(p.data[r * n + i]);
}

}  // namespace

void bind_wire(py::module_& m) {
  m.def("to_bfloat16", &to_bfloat16, py::arg("x"), py::arg("out"));
  m.def("sum_bfloat16", &sum_bfloat16, py::arg("parts"), py::arg("out"));
}

}  // namespace medmpi
