// The extension module: backends, threads, and one binding function per op family.
#include <omp.h>

#include "bind/call.h"
#include "cuda/memory.h"
#include "ops/precision.h"

namespace medmpi {

void bind_activation(py::module_& m);
void bind_batchnorm(py::module_& m);
void bind_clahe(py::module_& m);
void bind_collective(py::module_& m);
void bind_color(py::module_& m);
void bind_conv2d(py::module_& m);
void bind_copy(py::module_& m);
void bind_cuda_graph(py::module_& m);
void bind_device_array(py::module_& m);
void bind_dropout(py::module_& m);
void bind_elementwise(py::module_& m);
void bind_filter(py::module_& m);
void bind_histogram(py::module_& m);
void bind_linear(py::module_& m);
void bind_loss(py::module_& m);
void bind_median(py::module_& m);
void bind_memory(py::module_& m);
void bind_optimizer(py::module_& m);
void bind_pool(py::module_& m);
void bind_probe(py::module_& m);
void bind_recording(py::module_& m);
void bind_recursive(py::module_& m);
void bind_resize(py::module_& m);
void bind_upload(py::module_& m);
void bind_vigil(py::module_& m);
void bind_warp(py::module_& m);
void bind_wire(py::module_& m);

namespace {

py::list backends() {
  py::list names;
  int count = 0;
  const Ops* const* tables = runnable_ops(&count);
  for (int i = 0; i < count; ++i) names.append(tables[i]->name);
  if (device_ops()) names.append(device_ops()->name);
  return names;
}

void use_backend(const std::string& name) {
  const Ops* ops = find_ops(name.c_str());
  if (!ops && device_ops() && name == device_ops()->name)
    throw py::value_error("use_backend: '" + name +
                          "' computes device arrays, wherever they come; expected a backend for host arrays");
  if (!ops) {
    const std::string known = py::str(py::str(", ").attr("join")(backends()));
    throw py::value_error("use_backend: name is '" + name + "', this machine runs " + known);
  }
  use_host_ops(*ops);
}

void set_threads(int threads) {
  if (threads < 1) throw py::value_error("set_threads: threads is " + std::to_string(threads) + ", expected 1 or more");
  omp_set_num_threads(threads);
}

py::tuple cuda_devices() {
  const char* reason = "";
  const int count = cuda::device_count(&reason);
  return py::make_tuple(count, reason);
}

constexpr const char* kPrecisions[] = {"fp32", "tf32", "bf16"};

void set_precision_by_name(const std::string& name) {
  for (int i = 0; i < 3; ++i)
    if (name == kPrecisions[i]) return set_precision(static_cast<Precision>(i));
  throw py::value_error("set_precision: name is '" + name + "', expected fp32, tf32 or bf16");
}

}  // namespace
}  // namespace medmpi

PYBIND11_MODULE(_core, m) {
  using namespace medmpi;
  m.attr("__version__") = MEDMPI_VERSION;
  m.def("backends", &backends);
  m.def("backend", [] { return host_ops().name; });
  m.def("use_backend", &use_backend, py::arg("name"));
  m.def("set_threads", &set_threads, py::arg("threads"));
  m.def("threads", [] { return omp_get_max_threads(); });
  m.def("cuda_devices", &cuda_devices);
  m.def("set_precision", &set_precision_by_name, py::arg("name"));
  m.def("precision", [] { return kPrecisions[static_cast<int>(precision())]; });
  bind_activation(m);
  bind_batchnorm(m);
  bind_clahe(m);
  bind_collective(m);
  bind_color(m);
  bind_conv2d(m);
  bind_copy(m);
  bind_cuda_graph(m);
  bind_device_array(m);
  bind_dropout(m);
  bind_elementwise(m);
  bind_filter(m);
  bind_histogram(m);
  bind_linear(m);
  bind_loss(m);
  bind_median(m);
  bind_memory(m);
  bind_optimizer(m);
  bind_pool(m);
  bind_probe(m);
  bind_recording(m);
  bind_recursive(m);
  bind_resize(m);
  bind_upload(m);
  bind_vigil(m);
  bind_warp(m);
  bind_wire(m);
}
