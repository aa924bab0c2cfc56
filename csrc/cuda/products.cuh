#pragma once
// Products of fragments: in what precision, and at what price.
#include "cuda/operands.cuh"

namespace medmpi::cuda {

/// Operands rounded to tf32: relative error of a product about 5e-4.
struct Tf32Products {
  using Element = float;  // of operands in memory
  using Value = float;    // of a fragment, kValues of them for a unit and kStep of the depth
  static constexpr int kStep = 8, kValues = 2;

  template <int UnitsM, int UnitsN>
  __device__ static __forceinline__ void multiply(const float (&a)[UnitsM][2], const float (&b)[UnitsN][2],
                                                  float (&sum)[UnitsM / 2][UnitsN][4]) {
    uint32_t right[UnitsN][2];
#pragma unroll
    for (int j = 0; j < UnitsN; ++j)
#pragma unroll
      for (int d = 0; d < 2; ++d) right[j][d] = to_tf32(b[j][d]);
#pragma unroll
    for (int i = 0; i < UnitsM / 2; ++i) {
      const uint32_t left[4] = {to_tf32(a[2 * i][0]), to_tf32(a[2 * i + 1][0]), to_tf32(a[2 * i][1]),
                                to_tf32(a[2 * i + 1][1])};
#pragma unroll
      for (int j = 0; j < UnitsN; ++j) mma_tf32(sum[i][j], left, right[j]);
    }
  }
};

/// Operands as sums of two tf32 numbers, three of their four products: float32's error at a third of tf32's rate. Sums
/// with an infinite value become NaN.
struct Float32Products {
  using Element = float;
  using Value = float;
  static constexpr int kStep = 8, kValues = 2;

  __device__ static __forceinline__ void split(float value, uint32_t& high, uint32_t& low) {
    high = to_tf32(value);
    low = to_tf32(value - float_of(high));
  }

  template <int UnitsM, int UnitsN>
  __device__ static __forceinline__ void multiply(const float (&a)[UnitsM][2], const float (&b)[UnitsN][2],
                                                  float (&sum)[UnitsM / 2][UnitsN][4]) {
    uint32_t right[UnitsN][2], right_rest[UnitsN][2];
#pragma unroll
    for (int j = 0; j < UnitsN; ++j)
#pragma unroll
      for (int d = 0; d < 2; ++d) split(b[j][d], right[j][d], right_rest[j][d]);
#pragma unroll
    for (int i = 0; i < UnitsM / 2; ++i) {
      uint32_t left[4], left_rest[4];
#pragma unroll
      for (int e = 0; e < 4; ++e) split(a[2 * i + e % 2][e / 2], left[e], left_rest[e]);
#pragma unroll
      for (int j = 0; j < UnitsN; ++j) mma_tf32(sum[i][j], left_rest, right[j]);
#pragma unroll
      for (int j = 0; j < UnitsN; ++j) mma_tf32(sum[i][j], left, right_rest[j]);
#pragma unroll
      for (int j = 0; j < UnitsN; ++j) mma_tf32(sum[i][j], left, right[j]);
    }
  }
};

/// Operands rounded to bf16 on their way from shared memory: relative error of a product about 4e-3.
struct RoundedProducts {
  using Element = float;
  using Value = float;
  static constexpr int kStep = 16, kValues = 4;

  template <int UnitsM, int UnitsN>
  __device__ static __forceinline__ void multiply(const float (&a)[UnitsM][4], const float (&b)[UnitsN][4],
                                                  float (&sum)[UnitsM / 2][UnitsN][4]) {
    uint32_t right[UnitsN][2];
#pragma unroll
    for (int j = 0; j < UnitsN; ++j)
#pragma unroll
      for (int d = 0; d < 2; ++d) right[j][d] = to_bf16x2(b[j][2 * d], b[j][2 * d + 1]);
#pragma unroll
    for (int i = 0; i < UnitsM / 2; ++i) {
      uint32_t left[4];
#pragma unroll
      for (int e = 0; e < 4; ++e) left[e] = to_bf16x2(a[2 * i + e % 2][e / 2 * 2], a[2 * i + e % 2][e / 2 * 2 + 1]);
#pragma unroll
      for (int j = 0; j < UnitsN; ++j) mma_bf16(sum[i][j], left, right[j]);
    }
  }
};

/// Operands that are bf16 in memory.
struct Bf16Products {
  using Element = Bf16;
  using Value = uint32_t;
  static constexpr int kStep = 16, kValues = 2;

  template <int UnitsM, int UnitsN>
  __device__ static __forceinline__ void multiply(const uint32_t (&a)[UnitsM][2], const uint32_t (&b)[UnitsN][2],
                                                  float (&sum)[UnitsM / 2][UnitsN][4]) {
#pragma unroll
    for (int i = 0; i < UnitsM / 2; ++i) {
      const uint32_t left[4] = {a[2 * i][0], a[2 * i + 1][0], a[2 * i][1], a[2 * i + 1][1]};
#pragma unroll
      for (int j = 0; j < UnitsN; ++j) mma_bf16(sum[i][j], left, b[j]);
    }
  }
};

}  // namespace medmpi::cuda
