#pragma once
// The matrix product of one block of threads: sum (kM x kN) += A (kM x depth) B (depth x kN), products by tensor cores.
// Loaders bring kDepth of the depth into shared memory at a time, kStages ahead, by asynchronous copies; warps read
// them back as fragments.
#include <type_traits>

#include "cuda/products.cuh"

namespace medmpi::cuda {

/// Sizes of a block's product: kM x kN results, kDepth of the depth (Words of 4 bytes of a line) in a stage, kWarpM x
/// kWarpN results a warp; kBlocks of it are to fit into a multiprocessor's registers.
template <class ElementType, int M, int N, int Words, int WarpM, int WarpN, int Stages, int Blocks>
struct Tile {
  static_assert(M % WarpM == 0 && N % WarpN == 0 && WarpM % 32 == 0 && WarpN % 32 == 0, "warps are groups of 4 units");
  using Element = ElementType;
  static constexpr int kM = M, kN = N, kDepth = Words * 4 / sizeof(Element), kStages = Stages, kBlocks = Blocks;
  static constexpr int kWarpM = WarpM, kWarpN = WarpN, kWarpsM = M / WarpM, kWarpsN = N / WarpN;
  static constexpr int kThreads = 32 * kWarpsM * kWarpsN;
  static constexpr int kUnitsM = WarpM / 8, kUnitsN = WarpN / 8;
  static constexpr int kStageElements = (M + N) * kDepth;
  static constexpr size_t kSharedBytes = sizeof(Element) * kStages * kStageElements;
  static constexpr size_t kMomentBytes = sizeof(float) * 3 * kWarpsM * N;  // that the moments of a tile need
  static_assert(kMomentBytes <= kSharedBytes, "moments reuse the stages");
};

/// A lane's share of a warp's results: [i][j] is the 16 x 8 product of units 2i, 2i + 1 of A and unit j of B.
template <class T>
using Sums = float[T::kUnitsM / 2][T::kUnitsN][4];

/// Where a thread's warp and lane lie in the block's product.
template <class T>
struct Place {
  int lane, row, column;  // of the warp's first result

  __device__ __forceinline__ Place() {
    const int warp = static_cast<int>(threadIdx.x) / 32;
    lane = static_cast<int>(threadIdx.x) % 32;
    row = warp / T::kWarpsN * T::kWarpM;
    column = warp % T::kWarpsN * T::kWarpN;
  }
};

/// sum += the products of one stage.
template <class T, class Products, class LayoutA, class LayoutB>
__device__ __forceinline__ void multiply_stage(const typename T::Element* a, const typename T::Element* b,
                                               const Place<T>& place, Sums<T>& sum) {
#pragma unroll
  for (int depth = 0; depth < T::kDepth; depth += Products::kStep) {
    typename Products::Value left[T::kUnitsM][Products::kValues], right[T::kUnitsN][Products::kValues];
    LayoutA::read(a, place.row, depth, place.lane, left);
    LayoutB::read(b, place.column, depth, place.lane, right);
    Products::template multiply<T::kUnitsM, T::kUnitsN>(left, right, sum);
  }
}

/// Results lie in a lane's registers as the instructions leave them. Of float32 operands, four units' are neighbours in
/// a row of the result; of bf16 operands only pairs are, so that lanes exchange pairs: even ones take the four columns
/// of a unit that they share with the next lane, odd ones those of the unit after it.
template <class T>
__device__ __forceinline__ void arrange(Sums<T>& sum) {
  if constexpr (sizeof(typename T::Element) == 2) {
    const bool odd = threadIdx.x % 2 != 0;
#pragma unroll
    for (int i = 0; i < T::kUnitsM / 2; ++i)
#pragma unroll
      for (int j = 0; j < T::kUnitsN; j += 2)
#pragma unroll
        for (int e = 0; e < 4; e += 2) {
          float (&low)[4] = sum[i][j], (&high)[4] = sum[i][j + 1];
          const float x = __shfl_xor_sync(0xffffffffu, odd ? low[e] : high[e], 1);
          const float y = __shfl_xor_sync(0xffffffffu, odd ? low[e + 1] : high[e + 1], 1);
          if (odd) {
            low[e] = x;
            low[e + 1] = y;
          } else {
            high[e] = x;
            high[e + 1] = y;
          }
        }
  }
}

/// The column, from the warp's first, of a lane's four neighbours number `four` in a row.
template <class T>
__device__ __forceinline__ int column_of_four(int four, int lane) {
  const int t = lane % 4;
  return sizeof(typename T::Element) == 4 ? four / 2 * 32 + (2 * t + four % 2) * 4 : (2 * four + t % 2) * 8 + t / 2 * 4;
}

/// sum = the products of the steps [first, last) of the depth, kDepth each, arranged. A loader's load(operand, step)
/// starts the calling thread's copies of one step. All threads of the block are done with `shared` when it returns.
template <class T, class Products, class LoaderA, class LoaderB>
__device__ __forceinline__ void multiply_tile(const LoaderA& a, const LoaderB& b, int first, int last,
                                              unsigned char* shared, Sums<T>& sum) {
  using Element = typename T::Element;
  static_assert(std::is_same_v<Element, typename Products::Element>, "operands in shared memory are as in memory");
#pragma unroll
  for (int i = 0; i < T::kUnitsM / 2; ++i)
#pragma unroll
    for (int j = 0; j < T::kUnitsN; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) sum[i][j][e] = 0.0f;
  Element* stages = reinterpret_cast<Element*>(shared);
  const auto load = [&](int step, int stage) {
    Element* operands = stages + stage * T::kStageElements;
    if (step < last) {
      a.load(operands, step);
      b.load(operands + T::kM * T::kDepth, step);
    }
    commit_copies();
  };
#pragma unroll
  for (int stage = 0; stage < T::kStages - 1; ++stage) load(first + stage, stage);
  const Place<T> place;
  int stage = 0;
  for (int step = first; step < last; ++step) {
    wait_copies<T::kStages - 2>();
    __syncthreads();  // this stage is there for all, and nobody reads the one that is loaded next
    load(step + T::kStages - 1, stage == 0 ? T::kStages - 1 : stage - 1);
    const Element* operands = stages + stage * T::kStageElements;
    multiply_stage<T, Products, typename LoaderA::Layout, typename LoaderB::Layout>(
        operands, operands + T::kM * T::kDepth, place, sum);
    stage = stage == T::kStages - 1 ? 0 : stage + 1;
  }
  wait_copies<0>();
  __syncthreads();
  arrange<T>(sum);
}

/// Calls use(row, column, four) for each four neighbours of the calling thread's arranged results, rows and columns
/// from the block's first; `four` may be changed.
template <class T, class Use>
__device__ __forceinline__ void for_results(Sums<T>& sum, Use use) {
  constexpr bool kWide = sizeof(typename T::Element) == 4;
  const Place<T> place;
#pragma unroll
  for (int u = 0; u < T::kUnitsM; ++u) {
    const int row = place.row + unit_line<typename T::Element>(u, place.lane / 4);
#pragma unroll
    for (int i = 0; i < T::kUnitsN / 2; ++i) {
      float (&s)[T::kUnitsN][4] = sum[u / 2];
      const int e = kWide ? u % 2 * 2 + i % 2 : u % 2 * 2, j = kWide ? i / 2 * 4 : 2 * i;
      float &x = s[j][e], &y = kWide ? s[j + 1][e] : s[j][e + 1];
      float& z = kWide ? s[(j + 2) % T::kUnitsN][e] : s[j + 1][e];
      float& w = kWide ? s[(j + 3) % T::kUnitsN][e] : s[j + 1][e + 1];
      float4 four = make_float4(x, y, z, w);
      use(row, place.column + column_of_four<T>(i, place.lane), four);
      x = four.x;
      y = four.y;
      z = four.z;
      w = four.w;
    }
  }
}

/// A block's results as another block with the same tile reads them: part `part` of `parts` from `first` on.
template <class T>
__device__ __forceinline__ float* part_of(float* parts, int64_t part) {
  return parts + part * (T::kM * T::kN) + threadIdx.x * 4;
}

template <class T>
__device__ __forceinline__ void store_part(Sums<T>& sum, float* parts, int64_t part) {
  float* to = part_of<T>(parts, part);
  for_results<T>(sum, [&](int, int, const float4& four) {
    *reinterpret_cast<float4*>(to) = four;
    to += 4 * T::kThreads;
  });
}

template <class T>
__device__ __forceinline__ void load_part(Sums<T>& sum, float* parts, int64_t part) {
  const float* from = part_of<T>(parts, part);
  for_results<T>(sum, [&](int, int, float4& four) {
    four = *reinterpret_cast<const float4*>(from);
    from += 4 * T::kThreads;
  });
}

}  // namespace medmpi::cuda
