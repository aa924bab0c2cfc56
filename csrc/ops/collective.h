#pragma once
#include <cstdint>

namespace medmpi {

/// The arithmetic of a reduction over the ranks of a node, whose arrays all lie in memory that every rank has mapped.
struct CollectiveOps {
  /// For elements [begin, end): adds the `ranks` segments in rank order, ((s0 + s1) + s2) + ..., and stores the sum in
  /// the first `targets` of them. Plain float32 additions: the same bits in every table.
  void (*reduce)(int ranks, int targets, float* const* segments, int64_t begin, int64_t end);
};

}  // namespace medmpi
