#pragma once
// CUDA graphs of what Python gives the device, with the arrays that they use.
#include <map>
#include <memory>
#include <vector>

#include "bind/device_array.h"
#include "cuda/graph.h"

namespace medmpi {

class CudaGraph {
 public:
  /// Shares the memory of another graph, unless that is null.
  explicit CudaGraph(const CudaGraph* beside);

  /// The graph that the calling thread captures, or null.
  static CudaGraph* capturing();

  void begin();
  void end();
  void abandon() noexcept;
  void launch();
  size_t nodes() const { return graph_.nodes(); }

  /// Memory that what is captured uses. It stays as long as the graph if it is from before or outlives the capture.
  void note(const std::shared_ptr<DeviceMemory>& memory);

 private:
  cuda::Graph graph_;
  std::map<DeviceMemory*, std::shared_ptr<DeviceMemory>> used_;
  std::map<DeviceMemory*, std::weak_ptr<DeviceMemory>> made_;  // by what is captured
};

}  // namespace medmpi
