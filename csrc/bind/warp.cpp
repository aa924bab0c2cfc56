#include "ops/warp.h"

#include "bind/call.h"

namespace medmpi {
namespace {

// Positions are sums of three products with 16 fractional bits; within these bounds none leaves 64 bits by far.
constexpr int64_t kLargestSide = int64_t{1} << 20, kLargestNumber = int64_t{1} << 40;

template <size_t N>
void check_numbers(const Call& call, const char* name, const Tensor<const int64_t, N>& t) {
  if (!t.data) return;
  for (int64_t i = 0; i < t.size(); ++i)
    call.require(t.data[i] > -kLargestNumber && t.data[i] < kLargestNumber,
                 [&] { return std::string(name) + " has " + text(t.data[i]) + ", expected magnitudes below 2^40"; });
}

}  // namespace

void bind_warp(py::module_& m) {
  m.def(
      "warp",
      [](const py::object& x, const py::object& matrix, const py::object& colour, const py::object& out,
         bool bilinear) {
        Call call("warp");
        const auto in = call.in<uint8_t, 4>("x", x);
        const WarpShape s{in.shape[0], in.shape[1], in.shape[2], in.shape[3], bilinear};
        call.require(s.h < kLargestSide && s.w < kLargestSide, "x has sides beyond 2^20");
        const auto numbers = call.table<int64_t, 2>("matrix", matrix, {s.n, 6});
        const auto levels =
            colour.is_none() ? Tensor<const int64_t, 3>{} : call.table<int64_t, 3>("colour", colour, {s.n, s.c, 2});
        check_numbers(call, "matrix", numbers);
        check_numbers(call, "colour", levels);
        const auto y = call.out<uint8_t, 4>("out", out, in.shape);
        const auto kernel = call.ops().warp->forward;
        call.run(kernel, [&] { kernel(s, in.data, numbers.data, levels.data, y.data); });
      },
      py::arg("x"), py::arg("matrix"), py::arg("colour"), py::arg("out"), py::arg("bilinear"));
}

}  // namespace medmpi
