#pragma once
// The instructions that CUDA C++ has no portable words for, each with the same in plain C++ for emulation: asynchronous
// copies to shared memory, roundings to tf32 and bf16, and the matrix products of one warp. Fragment layouts are those
// of the PTX ISA ("Matrix Fragments for mma.m16n8k8" and "mma.m16n8k16"): with g = lane / 4 and t = lane % 4,
//   d[0..3]  rows g, g, g + 8, g + 8, columns 2t, 2t + 1, 2t, 2t + 1;
//   tf32     a[0..3] rows g, g + 8, g, g + 8 at depth t, t, t + 4, t + 4; b[0..1] depth t, t + 4 of column g;
//   bf16     a[0..3] rows g, g + 8, g, g + 8 at depths (2t, 2t + 1) twice, (2t + 8, 2t + 9) twice, the lower depth in
//            the lower half; b[0..1] depths (2t, 2t + 1), (2t + 8, 2t + 9) of column g.
#include <cstdint>
#include <cstring>

#ifdef MEDMPI_CUDA_EMULATED
#include <deque>
#include <vector>
#endif

#include "cuda/launch.cuh"

namespace medmpi::cuda {

#ifdef MEDMPI_CUDA_EMULATED
/// A copy that is under way: it is made as late as the waits allow, so that reading too early shows.
struct PendingCopy {
  void* to;
  const void* from;
  int bytes;
  bool valid;
};

/// The running thread's groups of copies; the last one is open.
inline std::deque<std::vector<PendingCopy>>& pending_copies() {
  thread_local std::vector<std::deque<std::vector<PendingCopy>>> all(1024);
  auto& mine = all[emulate::current->thread.x];
  if (mine.empty()) mine.emplace_back();
  return mine;
}
#endif

/// Starts the copy of Bytes (4 or 16, aligned) to shared memory; zeros where not `valid`, and nothing is read. What the
/// block will read `again` goes through the first-level cache.
template <int Bytes, bool Again>
__device__ __forceinline__ void copy_async(void* shared, const void* global, bool valid) {
  static_assert(Bytes == 4 || Bytes == 16, "sizes of the fast and the general path");
#ifdef MEDMPI_CUDA_EMULATED
  pending_copies().back().push_back({shared, global, Bytes, valid});
#else
  const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  const int from_bytes = valid ? Bytes : 0;
  if constexpr (Bytes == 16 && Again)
    asm volatile("cp.async.ca.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(from_bytes) : "memory");
  else if constexpr (Bytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(from_bytes) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(global), "r"(from_bytes) : "memory");
#endif
}

/// Closes this thread's group of copies.
__device__ __forceinline__ void commit_copies() {
#ifdef MEDMPI_CUDA_EMULATED
  pending_copies().emplace_back();
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

/// Waits until at most Pending of this thread's youngest groups are under way.
template <int Pending>
__device__ __forceinline__ void wait_copies() {
#ifdef MEDMPI_CUDA_EMULATED
  auto& groups = pending_copies();
  for (; groups.size() > Pending + 1; groups.pop_front())
    for (const PendingCopy& copy : groups.front())
      if (copy.valid)
        std::memcpy(copy.to, copy.from, static_cast<size_t>(copy.bytes));
      else
        std::memset(copy.to, 0, static_cast<size_t>(copy.bytes));
#else
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
#endif
}

/// The value rounded to tf32 (10 bits of mantissa), ties away from zero, as the bits of a float.
__device__ __forceinline__ uint32_t to_tf32(float value) {
  uint32_t bits;
#ifdef MEDMPI_CUDA_EMULATED
  std::memcpy(&bits, &value, sizeof bits);
  if ((bits & 0x7f800000u) != 0x7f800000u) bits += 0x1000u;
  bits &= 0xffffe000u;
#else
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
#endif
  return bits;
}

/// Two values rounded to bf16 (nearest, ties to even), the first in the lower half.
__device__ __forceinline__ uint32_t to_bf16x2(float low, float high) {
  uint32_t pair;
#ifdef MEDMPI_CUDA_EMULATED
  const auto rounded = [](float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (bits >> 16) | 0x40u;
    return (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  };
  pair = rounded(low) | rounded(high) << 16;
#else
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
#endif
  return pair;
}

__device__ __forceinline__ float float_of(uint32_t bits) {
#ifdef MEDMPI_CUDA_EMULATED
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
#else
  return __uint_as_float(bits);
#endif
}

#ifdef MEDMPI_CUDA_EMULATED
/// The registers that a lane brings to a product.
struct MmaLane {
  const uint32_t *a, *b;
  float* d;
};

/// d += a b for the whole warp; a_at(lanes, row, depth) and b_at(lanes, depth, column) find and decode operands.
template <int Depth, typename A, typename B>
void multiply_warp(MmaLane& mine, A a_at, B b_at) {
  emulate::warp_collective(MEDMPI_SITE, 0xffffffffu, mine, [&](MmaLane* const* lanes) {
    for (int row = 0; row < 16; ++row)
      for (int column = 0; column < 8; ++column) {
        float sum = 0.0f;
        for (int depth = 0; depth < Depth; ++depth) sum += a_at(lanes, row, depth) * b_at(lanes, depth, column);
        lanes[row % 8 * 4 + column / 2]->d[row / 8 * 2 + column % 2] += sum;
      }
  });
}
#endif

/// A bf16 number's bits in memory.
using Bf16 = uint16_t;

/// Four 8 x 8 matrices of bf16 from shared memory: the lanes' `row` points to rows of 16 bytes, lanes 8 i to 8 i + 7 of
/// matrix i. values[i] becomes elements (g, 2t) and (g, 2t + 1) of it, or of its transpose.
template <bool Transposed>
__device__ __forceinline__ void load_matrices(const Bf16* row, uint32_t (&values)[4]) {
#ifdef MEDMPI_CUDA_EMULATED
  struct Lane {
    const Bf16* row;
    uint32_t* values;
  } mine{row, values};
  emulate::warp_collective(MEDMPI_SITE, 0xffffffffu, mine, [](Lane* const* lanes) {
    for (int matrix = 0; matrix < 4; ++matrix)
      for (int lane = 0; lane < 32; ++lane) {
        const auto at = [&](int i, int j) {
          return uint32_t{Transposed ? lanes[matrix * 8 + j]->row[i] : lanes[matrix * 8 + i]->row[j]};
        };
        const int g = lane / 4, t = lane % 4;
        lanes[lane]->values[matrix] = at(g, 2 * t) | at(g, 2 * t + 1) << 16;
      }
  });
#else
  const uint32_t from = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  if constexpr (Transposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(values[0]), "=r"(values[1]), "=r"(values[2]), "=r"(values[3])
                 : "r"(from)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(values[0]), "=r"(values[1]), "=r"(values[2]), "=r"(values[3])
                 : "r"(from)
                 : "memory");
#endif
}

/// d += a b, 16 x 8 x 8, operands in tf32. All lanes of the warp call it.
__device__ __forceinline__ void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#ifdef MEDMPI_CUDA_EMULATED
  MmaLane mine{a, b, d};
  const auto tf32 = [](uint32_t bits) { return float_of(bits & 0xffffe000u); };
  multiply_warp<8>(
      mine,
      [&](MmaLane* const* lanes, int row, int depth) {
        return tf32(lanes[row % 8 * 4 + depth % 4]->a[row / 8 + depth / 4 * 2]);
      },
      [&](MmaLane* const* lanes, int depth, int column) { return tf32(lanes[column * 4 + depth % 4]->b[depth / 4]); });
#else
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

/// d += a b, 16 x 8 x 16, operands in bf16. All lanes of the warp call it.
__device__ __forceinline__ void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#ifdef MEDMPI_CUDA_EMULATED
  MmaLane mine{a, b, d};
  const auto half = [](uint32_t pair, int which) { return float_of(which ? pair & 0xffff0000u : pair << 16); };
  multiply_warp<16>(
      mine,
      [&](MmaLane* const* lanes, int row, int depth) {
        return half(lanes[row % 8 * 4 + depth % 8 / 2]->a[row / 8 + depth / 8 * 2], depth % 2);
      },
      [&](MmaLane* const* lanes, int depth, int column) {
        return half(lanes[column * 4 + depth % 8 / 2]->b[depth / 8], depth % 2);
      });
#else
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

}  // namespace medmpi::cuda
