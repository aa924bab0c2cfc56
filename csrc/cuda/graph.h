#pragma once
// CUDA graphs: the work that a thread gives the device, captured once and launched as one, without CUDA's headers.
//
// A graph goes back to the addresses of its capture. So what is allocated meanwhile comes from, and returns to, memory
// that nobody else gets while the graph lives; several graphs that run one after another may share it. Memory from
// before belongs to whoever captures, and has to live as long. Nothing may wait for the device, copy between it and the
// host, or use memory that another stream used last: these raise std::runtime_error, and the capture is lost.
#include <memory>

#include "cuda/memory.h"

namespace medmpi::cuda {

class GraphMemory {
 public:
  GraphMemory();
  ~GraphMemory();
  GraphMemory(const GraphMemory&) = delete;
  GraphMemory& operator=(const GraphMemory&) = delete;

  uint64_t home() const { return home_; }
  /// The stream whose work used the memory last.
  void used_on(Stream stream) { stream_ = stream; }

 private:
  uint64_t home_;
  Stream stream_;
};

class Graph {
 public:
  explicit Graph(std::shared_ptr<GraphMemory> memory) : memory_(std::move(memory)) {}
  ~Graph();
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  /// The graph that the calling thread captures just now, or null.
  static Graph* capturing();

  /// What the calling thread gives its stream from here on is captured instead of done.
  void begin();
  /// The end of that: the graph can be launched.
  void end();
  /// The end of a capture that failed.
  void abandon() noexcept;
  /// Does what was captured, on the calling thread's stream and after the launch before.
  void launch();

  const std::shared_ptr<GraphMemory>& memory() const { return memory_; }
  /// Kernels, copies and fills.
  size_t nodes() const { return nodes_; }
  void* scratch(int slot, size_t bytes);

 private:
  void* stop();

  std::shared_ptr<GraphMemory> memory_;
  Block scratch_[16];
  void* exec_ = nullptr;
  Stream stream_ = nullptr;  // of the capture, then of the last launch
  size_t nodes_ = 0;
};

/// std::runtime_error where the calling thread captures a graph, which cannot hold `what`.
void refuse_in_capture(const char* what);

}  // namespace medmpi::cuda
