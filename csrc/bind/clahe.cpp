#include "ops/clahe.h"

#include <pybind11/stl.h>

#include "bind/call.h"

namespace medmpi {
namespace {

template <typename T>
void run_clahe(void (*ClaheOps::*entry)(const ClaheShape&, const T*, T*), const py::object& x, const py::object& out,
               const std::array<int64_t, 3>& extents, double clip_limit, const std::array<int64_t, 2>& tiles) {
  Call call("clahe");
  const auto in = call.flat_in<T>("image", x);
  const auto y = call.flat_out<T>("out", out, in.size());
  const ClaheShape s{extents[0], extents[1], extents[2], tiles[0], tiles[1], clip_limit};
  const auto kernel = call.ops().clahe->*entry;
  call.require(s.n * s.h * s.w == in.size(), "extents do not multiply to the size of image");
  call.require(tiles[0] >= 1 && tiles[1] >= 1, "tile_grid must be at least 1");
  if (in.size()) call.run(kernel, [&] { kernel(s, in.data, y.data); });
}

}  // namespace

void bind_clahe(py::module_& m) {
  const auto define = [&m](const char* name, auto ops) {
    m.def(
        name,
        [ops](const py::object& x, const py::object& out, const std::array<int64_t, 3>& extents, double clip_limit,
              const std::array<int64_t, 2>& tiles) { run_clahe(ops, x, out, extents, clip_limit, tiles); },
        py::arg("x"), py::arg("out"), py::arg("extents"), py::arg("clip_limit"), py::arg("tiles"));
  };
  define("clahe_uint8", &ClaheOps::u8);
  define("clahe_uint16", &ClaheOps::u16);
}

}  // namespace medmpi
