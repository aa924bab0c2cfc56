#pragma once
#include <cstdint>

namespace medmpi {

/// Measures what one core of this machine can do now, for benchmarks that must know when it is disturbed.
struct ProbeOps {
  /// Independent multiply-adds from registers, `rounds` x 24 vectors; returns the floating-point operations done.
  int64_t (*multiply_add)(int64_t rounds, float* sink);
  /// y = x over n float32 values, one thread.
  void (*copy)(int64_t n, const float* x, float* y);
};

}  // namespace medmpi
