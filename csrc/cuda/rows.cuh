#pragma once
// Arrays of m rows of c channels (NHWC), read a tile of channels at a time. A block of 256 threads is `lanes` threads
// wide, each with Wide neighbouring channels, and kThreads / lanes rows tall; a warp reads whole lines of memory
// whatever c is. Reductions over rows are cut by the shape alone into chunks of rows, whose results are merged in
// order.
#include "cuda/block.cuh"
#include "cuda/elements.cuh"

namespace medmpi::cuda {

/// How rows and channels are dealt out: grid (tiles, chunks).
struct RowTiles {
  int64_t m, c;
  int lanes, rows_per_pass;     // rows_per_pass = kThreads / lanes
  int64_t tiles, rows, chunks;  // rows: of a chunk

  template <int Wide>
  __device__ __forceinline__ int64_t channel() const {
    return (int64_t{blockIdx.x} * lanes + static_cast<int>(threadIdx.x) % lanes) * Wide;
  }
  __device__ __forceinline__ int pass_row() const { return static_cast<int>(threadIdx.x) / lanes; }
};

/// `values`: of a chunk, about; `most`: chunks at most.
inline RowTiles tile_rows(int64_t m, int64_t c, int wide, int64_t values, int64_t most) {
  RowTiles t{};
  t.m = m;
  t.c = c;
  t.lanes = 1;
  while (t.lanes < 32 && t.lanes * wide < c) t.lanes *= 2;
  t.rows_per_pass = static_cast<int>(kThreads) / t.lanes;
  t.tiles = (c + t.lanes * wide - 1) / (t.lanes * wide);
  t.rows = std::max(values / (t.lanes * wide), (m + most - 1) / most);
  t.rows = (t.rows + 4 * t.rows_per_pass - 1) / (4 * t.rows_per_pass) * (4 * t.rows_per_pass);
  t.chunks = (m + t.rows - 1) / t.rows;
  return t;
}

template <int Wide>
struct Pack {
  float v[Wide];
};
template <int Wide>
__device__ __forceinline__ Pack<Wide> load_pack(const float* p) {
  Pack<Wide> r;
  if constexpr (Wide == 4) {
    const float4 v = *reinterpret_cast<const float4*>(p);
    r.v[0] = v.x, r.v[1] = v.y, r.v[2] = v.z, r.v[3] = v.w;
  } else {
    r.v[0] = *p;
  }
  return r;
}
template <int Wide>
__device__ __forceinline__ void store_pack(float* p, const Pack<Wide>& r) {
  if constexpr (Wide == 4)
    *reinterpret_cast<float4*>(p) = make_float4(r.v[0], r.v[1], r.v[2], r.v[3]);
  else
    *p = r.v[0];
}

/// Whether rows of c values at all of these addresses can be read four at a time. Null pointers do not matter.
template <typename... Pointers>
bool wide_rows(int64_t c, const Pointers*... p) {
  return c % 4 == 0 && (aligned16(p) && ...);
}

/// The sum of v over the rows of a block's pass, for each channel, valid where pass_row() is 0.
template <int Wide>
__device__ __forceinline__ void sum_over_rows(const RowTiles& t, double (&v)[Wide]) {
  SHARED_ARRAY(double, part, [kThreads * Wide]);
  __syncthreads();  // part may still be read from the call before
#pragma unroll
  for (int k = 0; k < Wide; ++k) part[k * static_cast<int>(kThreads) + static_cast<int>(threadIdx.x)] = v[k];
  for (int rows = t.rows_per_pass / 2; rows; rows /= 2) {
    __syncthreads();
    if (t.pass_row() < rows)
#pragma unroll
      for (int k = 0; k < Wide; ++k) {
        double* mine = part + k * static_cast<int>(kThreads) + static_cast<int>(threadIdx.x);
        mine[0] += mine[rows * t.lanes];
      }
  }
  __syncthreads();
#pragma unroll
  for (int k = 0; k < Wide; ++k) v[k] = part[k * static_cast<int>(kThreads) + static_cast<int>(threadIdx.x)];
}

}  // namespace medmpi::cuda
