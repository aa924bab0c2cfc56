#include <cuda_runtime.h>

#include <stdexcept>

#include "cuda/device_pool.h"
#include "cuda/graph.h"
#include "cuda/launch.cuh"

namespace medmpi::cuda {
namespace {

thread_local Graph* current = nullptr;

}  // namespace

GraphMemory::GraphMemory() : home_(device_pool().open_home()), stream_(current_stream()) {}
GraphMemory::~GraphMemory() { device_pool().close_home(home_, stream_); }

Graph* Graph::capturing() { return current; }

Graph::~Graph() {
  if (!exec_) return;
  if (!current) cudaStreamSynchronize(static_cast<cudaStream_t>(stream_));  // it may be under way
  cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(exec_));
}

void Graph::begin() {
  if (current) throw std::runtime_error("a CUDA graph is captured already, expected one at a time in a thread");
  if (exec_) throw std::runtime_error("this CUDA graph is captured already, expected a new one");
  stream_ = current_stream();
  check(cudaStreamBeginCapture(stream(), cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
  current = this;
}

/// Ends the capture; the cudaGraph_t, null where it is lost.
void* Graph::stop() {
  current = nullptr;
  for (Block& block : scratch_) {
    if (block.data) device_pool().give(block, stream_);
    block = {};
  }
  cudaGraph_t graph = nullptr;
  const cudaError_t status = cudaStreamEndCapture(stream(), &graph);
  if (status != cudaSuccess) {
    if (graph) cudaGraphDestroy(graph);
    check(status, "cudaStreamEndCapture");
  }
  return graph;
}

void Graph::end() {
  auto graph = static_cast<cudaGraph_t>(stop());
  cudaGraphExec_t exec = nullptr;
  cudaError_t status = cudaGraphGetNodes(graph, nullptr, &nodes_);
  if (status == cudaSuccess) status = cudaGraphInstantiate(&exec, graph, 0);
  cudaGraphDestroy(graph);
  check(status, "cudaGraphInstantiate");
  exec_ = exec;
}

void Graph::abandon() noexcept {
  try {
    cudaGraphDestroy(static_cast<cudaGraph_t>(stop()));
  } catch (const std::exception&) {
    // the reason of the failure is on its way already
  }
}

void Graph::launch() {
  refuse_in_capture("the launch of another graph");
  if (!exec_) throw std::runtime_error("this CUDA graph is not captured yet, expected that before its launch");
  const Stream mine = current_stream();
  order(stream_, mine);
  stream_ = mine;
  memory_->used_on(mine);
  check(cudaGraphLaunch(static_cast<cudaGraphExec_t>(exec_), stream()), "cudaGraphLaunch");
  after_launch();
}

void* Graph::scratch(int slot, size_t bytes) {
  Block& block = scratch_[slot];
  if (block.data && block.size >= bytes) return block.data;
  if (block.data) device_pool().give(block, stream_);
  block = {};
  block = device_pool().take(bytes, stream_, memory_->home());
  return block.data;
}

void refuse_in_capture(const char* what) {
  if (current)
    throw std::runtime_error("a CUDA graph cannot capture " + std::string(what) +
                             ": the device runs it without the host");
}

}  // namespace medmpi::cuda
