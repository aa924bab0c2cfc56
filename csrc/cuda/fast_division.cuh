#pragma once
// Division by a number that the host knows, without a division (Granlund, Montgomery 1994, figure 4.1).
#include <cstdint>

#include "cuda/launch.cuh"

namespace medmpi::cuda {

/// Divides numbers below 2^31.
struct FastDivision {
  uint32_t divisor = 1, multiplier = 1, shift = 0;

  FastDivision() = default;
  /// 1 <= by < 2^31.
  explicit FastDivision(int64_t by) : divisor(static_cast<uint32_t>(by)) {
    while ((uint64_t{1} << shift) < divisor) ++shift;
    multiplier = static_cast<uint32_t>((((uint64_t{1} << shift) - divisor) << 32) / divisor + 1);
  }

  __device__ __forceinline__ int quotient(int number) const {
    const uint32_t n = static_cast<uint32_t>(number);
    return static_cast<int>((static_cast<uint32_t>((uint64_t{n} * multiplier) >> 32) + n) >> shift);
  }
  /// Sets the remainder too.
  __device__ __forceinline__ int quotient(int number, int& remainder) const {
    const int whole = quotient(number);
    remainder = number - whole * static_cast<int>(divisor);
    return whole;
  }
};

}  // namespace medmpi::cuda
