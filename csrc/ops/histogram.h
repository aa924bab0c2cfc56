#pragma once
#include <cstdint>

namespace medmpi {

/// Counts of n values. Integers: one bin for each level. float32: bins [edges[i], edges[i + 1]), the last one closed;
/// what lies outside, and NaN, is not counted. The edges are nearly equidistant and ascend.
struct HistogramOps {
  void (*u8)(int64_t n, const uint8_t* x, int64_t* counts);    // 256 counts
  void (*u16)(int64_t n, const uint16_t* x, int64_t* counts);  // 65536 counts
  void (*f32)(int64_t n, const float* x, int64_t bins, const float* edges, int64_t* counts);
  /// The smallest and the largest of n >= 1 values; NaN in both where there is one.
  void (*range)(int64_t n, const float* x, float* low, float* high);
};

}  // namespace medmpi
