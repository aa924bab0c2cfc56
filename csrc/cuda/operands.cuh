#pragma once
// How a block's operands lie in shared memory and how warps read them as fragments. Elements are float32 or bf16.
//
// A lane holds eight-line units (rows of A, columns of B). With g = lane / 4 and t = lane % 4, unit u of a warp has for
// the lane the line 32 (u / 4) + 4 g + u % 4 where elements are float32: four units are then 16 consecutive bytes, of
// operands whose lines lie together and of results. Where they are bf16 it is 8 u + g, as the instruction that loads
// matrices wants it. The depths of a float32 unit are 2t and 2t + 1 of each eight, whatever the product's instruction
// calls them: it only has to be the same for A and B.
#include "cuda/mma.cuh"

namespace medmpi::cuda {

template <class Element>
__device__ __forceinline__ constexpr int unit_line(int unit, int g) {
  return sizeof(Element) == 4 ? unit / 4 * 32 + g * 4 + unit % 4 : unit * 8 + g;
}

/// An operand of `Lines` lines whose depth is contiguous in memory. A line has a slot of Depth elements; pieces of it
/// are exchanged so that lanes that read together read from different banks.
template <class Element, int Lines, int Depth>
struct DepthContiguous;

template <int Lines, int Depth>
struct DepthContiguous<float, Lines, Depth> {
  static_assert(Depth == 16 || Depth == 32, "exchange() knows these");

  __device__ static __forceinline__ int exchange(int slot) { return Depth == 32 ? slot & 3 : slot >> 1 & 1; }
  __device__ static __forceinline__ int at(int slot, int depth) {
    return slot * Depth + ((depth / 8 ^ exchange(slot)) * 8) + depth % 8;
  }
  /// The line that is kept in a slot: a unit's lines have consecutive slots.
  __device__ static __forceinline__ int line_of(int slot) { return slot / 32 * 32 + slot % 8 * 4 + slot % 32 / 8; }

  /// values[u][2 b + j]: unit u at depth + 8 b + 2t + j.
  template <int Units, int Values>
  __device__ static __forceinline__ void read(const float* operand, int first, int depth, int lane,
                                              float (&values)[Units][Values]) {
    const int slot = first + lane / 4;
#pragma unroll
    for (int b = 0; b < Values / 2; ++b) {
      const float* from = operand + at(slot, depth + 8 * b) + lane % 4 * 2;
#pragma unroll
      for (int u = 0; u < Units; ++u) {
        const float2 pair = *reinterpret_cast<const float2*>(from + u * 8 * Depth);
        values[u][2 * b] = pair.x;
        values[u][2 * b + 1] = pair.y;
      }
    }
  }
};

template <int Lines, int Depth>
struct DepthContiguous<Bf16, Lines, Depth> {
  static_assert(Depth == 32 || Depth == 64, "exchange() knows these");

  __device__ static __forceinline__ int exchange(int slot) { return Depth == 64 ? slot & 7 : slot >> 1 & 3; }
  __device__ static __forceinline__ int at(int slot, int depth) {
    return slot * Depth + ((depth / 8 ^ exchange(slot)) * 8) + depth % 8;
  }
  __device__ static __forceinline__ int line_of(int slot) { return slot; }

  /// values[u][b]: unit u at depth + 8 b + 2t and + 1.
  template <int Units>
  __device__ static __forceinline__ void read(const Bf16* operand, int first, int depth, int lane,
                                              uint32_t (&values)[Units][2]) {
#pragma unroll
    for (int u = 0; u < Units; u += 2) {
      uint32_t four[4];
      load_matrices<false>(operand + at(first + (u + lane / 16) * 8 + lane % 8, depth + lane / 8 % 2 * 8), four);
      values[u][0] = four[0];
      values[u][1] = four[1];
      values[u + 1][0] = four[2];
      values[u + 1][1] = four[3];
    }
  }
};

/// An operand whose lines are contiguous in memory: rows of `Lines` elements, one for each depth, sixteen-byte pieces
/// exchanged for the banks' sake.
template <class Element, int Lines, int Depth>
struct LineContiguous;

template <int Lines, int Depth>
struct LineContiguous<float, Lines, Depth> {
  __device__ static __forceinline__ int at(int line, int depth) {
    return depth * Lines + ((line / 4 ^ (depth >> 1 & 3) << 1) * 4) + line % 4;
  }

  template <int Units, int Values>
  __device__ static __forceinline__ void read(const float* operand, int first, int depth, int lane,
                                              float (&values)[Units][Values]) {
#pragma unroll
    for (int b = 0; b < Values / 2; ++b)
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const float* from = operand + at(first + lane / 4 * 4, depth + 8 * b + lane % 4 * 2 + j);
#pragma unroll
        for (int u = 0; u < Units; u += 4) {
          const float4 four = *reinterpret_cast<const float4*>(from + u * 8);
          values[u][2 * b + j] = four.x;
          values[u + 1][2 * b + j] = four.y;
          values[u + 2][2 * b + j] = four.z;
          values[u + 3][2 * b + j] = four.w;
        }
      }
  }
};

template <int Lines, int Depth>
struct LineContiguous<Bf16, Lines, Depth> {
  __device__ static __forceinline__ int at(int line, int depth) {
    return depth * Lines + ((line / 8 ^ (depth & 7)) * 8) + line % 8;
  }

  template <int Units>
  __device__ static __forceinline__ void read(const Bf16* operand, int first, int depth, int lane,
                                              uint32_t (&values)[Units][2]) {
#pragma unroll
    for (int u = 0; u < Units; u += 2) {
      uint32_t four[4];
      load_matrices<true>(operand + at(first + (u + lane / 16) * 8, depth + lane % 16), four);
      values[u][0] = four[0];
      values[u][1] = four[1];
      values[u + 1][0] = four[2];
      values[u + 1][1] = four[3];
    }
  }
};

}  // namespace medmpi::cuda
