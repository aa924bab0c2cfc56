#pragma once
#include <cstdint>

namespace medmpi {

/// Dropout with the counter-based generator Philox4x32-10 (Salmon et al., SC 2011).
struct DropoutOps {
  /// y[i] = bits(seed, offset + i) >= limit ? x[i] scale : 0, with 32 random bits and limit <= 2^32. `y` may be `x`.
  /// Element e uses word (e % 64) / 16 of counter e / 64 * 16 + e % 16.
  void (*apply)(int64_t n, uint64_t limit, float scale, uint64_t seed, uint64_t offset, const float* x, float* y);
  /// The same with key[0] = seed and key[1] = offset in memory beside the arrays; on devices.
  void (*apply_keyed)(int64_t n, uint64_t limit, float scale, const int64_t* key, const float* x, float* y) = nullptr;
};

}  // namespace medmpi
