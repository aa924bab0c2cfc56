#include "ops/color.h"

#include "bind/call.h"

namespace medmpi {
namespace {

/// `channels` values come of the three of a pixel.
template <typename T, typename U>
void define(py::module_& m, const char* op, const char* name, void (*ColorOps::*entry)(int64_t, const T*, U*),
            int64_t channels) {
  m.def(
      name,
      [op, entry, channels](const py::object& x, const py::object& out) {
        Call call(op);
        const auto in = call.flat_in<T>("image", x);
        call.require(in.size() % 3 == 0, "image must have three channels");
        const auto y = call.flat_out<U>("out", out, in.size() / 3 * channels);
        const auto kernel = call.ops().color->*entry;
        if (in.size()) call.run(kernel, [&] { kernel(in.size() / 3, in.data, y.data); });
      },
      py::arg("x"), py::arg("out"));
}

}  // namespace

void bind_color(py::module_& m) {
  define(m, "rgb_to_hsv", "rgb_to_hsv_uint8", &ColorOps::rgb_to_hsv_u8, 3);
  define(m, "rgb_to_hsv", "rgb_to_hsv_float32", &ColorOps::rgb_to_hsv_f32, 3);
  define(m, "hsv_to_rgb", "hsv_to_rgb", &ColorOps::hsv_to_rgb, 3);
  define(m, "rgb_to_gray", "rgb_to_gray_uint8", &ColorOps::rgb_to_gray_u8, 1);
  define(m, "rgb_to_gray", "rgb_to_gray_float32", &ColorOps::rgb_to_gray_f32, 1);
}

}  // namespace medmpi
