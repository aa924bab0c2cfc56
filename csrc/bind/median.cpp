#include "ops/median.h"

#include <pybind11/stl.h>

#include "bind/border.h"

namespace medmpi {
namespace {

constexpr int64_t kLargestWindow = 65535;

template <typename T>
void run_median(void (*MedianOps::*entry)(const MedianShape&, const T*, T*), const py::object& x, const py::object& out,
                const std::array<int64_t, 5>& extents, const std::array<int64_t, 3>& size, const std::string& mode,
                double cval) {
  Call call("median_filter");
  const auto in = call.flat_in<T>("input", x);
  const auto y = call.flat_out<T>("out", out, in.size());
  for (const int64_t n : size)
    call.require(n >= 1 && n <= kLargestWindow && n % 2 == 1,
                 [&] { return "size has " + text(n) + ", expected odd numbers up to " + text(kLargestWindow); });
  const MedianShape s{extents[0],  extents[1],  extents[2],
                      extents[3],  extents[4],  size[0] / 2,
                      size[1] / 2, size[2] / 2, border_of(call, mode),
                      cval};
  call.require(s.window() <= kLargestWindow, [&] {
    return "the window has " + text(s.window()) + " values, expected at most " + text(kLargestWindow);
  });
  const auto held =
      static_cast<double>(static_cast<T>(std::is_integral_v<T> && !(cval >= 0 && cval <= 65535) ? 0 : cval));
  call.require(!std::is_integral_v<T> || held == cval, "cval is not a value of input's type");
  const auto kernel = call.ops().median_filter->*entry;
  call.require(s.outer * s.depth * s.height * s.width * s.channels == in.size(),
               "extents do not multiply to the size of input");
  if (in.size()) call.run(kernel, [&] { kernel(s, in.data, y.data); });
}

}  // namespace

void bind_median(py::module_& m) {
  const auto define = [&m](const char* name, auto ops) {
    m.def(
        name,
        [ops](const py::object& x, const py::object& out, const std::array<int64_t, 5>& extents,
              const std::array<int64_t, 3>& size, const std::string& mode,
              double cval) { run_median(ops, x, out, extents, size, mode, cval); },
        py::arg("x"), py::arg("out"), py::arg("extents"), py::arg("size"), py::arg("mode"), py::arg("cval"));
  };
  define("median_filter_uint8", &MedianOps::u8);
  define("median_filter_uint16", &MedianOps::u16);
  define("median_filter_float32", &MedianOps::f32);
}

}  // namespace medmpi
