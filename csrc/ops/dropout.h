#pragma once
#include <cstdint>

namespace medmpi {

/// Dropout with the counter-based generator Philox4x32-10 (Salmon et al., SC 2011).
struct DropoutOps {
  /// y[i] = bits(seed, offset + i) >= limit ? x[i] scale : 0, with 32 random bits and limit <= 2^32. `y` may be `x`.
  /// Element e uses word (e % 64) / 16 of counter e / 64 * 16 + e % 16.
  void (*apply)(int64_t n, uint64_t limit, float scale, uint64_t seed, uint64_t offset, const float* x, float* y);
};

}  // namespace medmpi
