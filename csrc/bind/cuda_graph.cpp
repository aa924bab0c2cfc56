#include "bind/cuda_graph.h"

namespace medmpi {
namespace {

thread_local CudaGraph* current = nullptr;

}  // namespace

CudaGraph::CudaGraph(const CudaGraph* beside)
    : graph_(beside ? beside->graph_.memory() : std::make_shared<cuda::GraphMemory>()) {}

CudaGraph* CudaGraph::capturing() { return current; }

void CudaGraph::begin() {
  graph_.begin();
  current = this;
}

void CudaGraph::end() {
  current = nullptr;
  graph_.end();
  for (const auto& [address, made] : made_)
    if (const auto memory = made.lock()) used_.emplace(address, memory);
  made_.clear();
}

void CudaGraph::abandon() noexcept {
  current = nullptr;
  graph_.abandon();
}

void CudaGraph::note(const std::shared_ptr<DeviceMemory>& memory) {
  if (memory->home() == graph_.memory()->home())
    made_[memory.get()] = memory;  // an address may have had another array before
  else
    used_.emplace(memory.get(), memory);
}

void CudaGraph::launch() {
  for (const auto& [address, memory] : used_) memory->begin_use();
  graph_.launch();
}

void bind_cuda_graph(py::module_& m) {
  py::class_<CudaGraph>(m, "CudaGraph",
                        "What a with block gives the device, captured instead of done; ``launch()`` does it.")
      .def(py::init<const CudaGraph*>(), py::arg("beside") = py::none())
      .def(
          "__enter__",
          [](CudaGraph& self) -> CudaGraph& {
            self.begin();
            return self;
          },
          py::return_value_policy::reference_internal)
      .def("__exit__",
           [](CudaGraph& self, const py::args& error) {
             if (error[0].is_none())
               self.end();
             else
               self.abandon();
           })
      .def("launch", &CudaGraph::launch, py::call_guard<py::gil_scoped_release>())
      .def("__len__", &CudaGraph::nodes);
}

}  // namespace medmpi
