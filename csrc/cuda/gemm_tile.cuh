#pragma once
// The matrix product of one block of threads: sum (kM x kN) += A (kM x depth) B (depth x kN), operands float32 in
// memory, products by tensor cores. Loaders bring kDepth of the depth into shared memory at a time, kStages ahead, by
// asynchronous copies; warps read them back as fragments.
//
// A lane holds eight-row units of A and eight-column units of B: unit u of its warp has for the lane's g = lane / 4 the
// row (column) 32 (u / 4) + 4 g + u % 4, so that four units are 16 consecutive bytes: of an operand in shared memory
// whose rows lie together, and of the result. The depths of a lane's t = lane % 4 are 2t and 2t + 1 of each eight,
// whatever the instruction calls them: it only has to be the same for A and B.
#include "cuda/mma.cuh"

namespace medmpi::cuda {

/// Sizes of a block's product: kM x kN results, kDepth of the depth in a stage, kWarpM x kWarpN results a warp;
/// kBlocks of it are to fit into a multiprocessor's registers.
template <int M, int N, int Depth, int WarpM, int WarpN, int Stages, int Blocks>
struct Tile {
  static_assert(M % WarpM == 0 && N % WarpN == 0 && WarpM % 32 == 0 && WarpN % 32 == 0, "warps are groups of 4 units");
  static_assert(Depth == 16 || Depth == 32, "the layouts below know these");
  static constexpr int kM = M, kN = N, kDepth = Depth, kStages = Stages, kBlocks = Blocks;
  static constexpr int kWarpM = WarpM, kWarpN = WarpN, kWarpsM = M / WarpM, kWarpsN = N / WarpN;
  static constexpr int kThreads = 32 * kWarpsM * kWarpsN;
  static constexpr int kUnitsM = WarpM / 8, kUnitsN = WarpN / 8;
  static constexpr int kStageFloats = (M + N) * Depth;
  static constexpr size_t kSharedBytes = sizeof(float) * kStages * kStageFloats;
  static constexpr size_t kMomentBytes = sizeof(float) * 3 * kWarpsM * N;  // that the moments of a tile need
  static_assert(kMomentBytes <= kSharedBytes, "moments reuse the stages");
};

/// A lane's share of a warp's results: [i][j] is the 16 x 8 product of units 2i, 2i + 1 of A and unit j of B.
template <class T>
using Sums = float[T::kUnitsM / 2][T::kUnitsN][4];

/// Row (or column) of a warp's unit that a lane's `g` stands for.
__device__ __forceinline__ constexpr int unit_line(int unit, int g) { return unit / 4 * 32 + g * 4 + unit % 4; }

/// An operand of `Lines` rows of A (columns of B) whose depth is contiguous in memory. Slots of a line's depth follow
/// each other; blocks of eight are exchanged so that the lanes of half a warp read from different banks.
template <int Lines, int Depth>
struct DepthContiguous {
  static constexpr bool kDepthContiguous = true;
  static constexpr int kLines = Lines;

  __device__ static __forceinline__ int exchange(int slot) { return Depth == 32 ? slot & 3 : slot >> 1 & 1; }
  __device__ static __forceinline__ int at(int slot, int depth) {
    return slot * Depth + ((depth / 8 ^ exchange(slot)) * 8) + depth % 8;
  }
  /// The line that is kept in a slot: a unit's lines have consecutive slots.
  __device__ static __forceinline__ int line_of(int slot) { return slot / 32 * 32 + slot % 8 * 4 + slot % 32 / 8; }

  /// values[u][2 b + j]: unit u at depth 8 (block + b) + 2t + j.
  template <int Units, int Blocks>
  __device__ static __forceinline__ void read(const float* operand, int first, int block, int lane,
                                              float (&values)[Units][2 * Blocks]) {
    const int slot = first + lane / 4;
#pragma unroll
    for (int b = 0; b < Blocks; ++b) {
      const float* from = operand + at(slot, 8 * (block + b)) + lane % 4 * 2;
#pragma unroll
      for (int u = 0; u < Units; ++u) {
        const float2 pair = *reinterpret_cast<const float2*>(from + u * 8 * Depth);
        values[u][2 * b] = pair.x;
        values[u][2 * b + 1] = pair.y;
      }
    }
  }
};

/// An operand whose lines are contiguous in memory: rows of `Lines` values, one for each depth, sixteen-byte pieces
/// exchanged so that the lanes of a quarter warp read from different banks.
template <int Lines, int Depth>
struct LineContiguous {
  static constexpr bool kDepthContiguous = false;
  static constexpr int kLines = Lines;

  __device__ static __forceinline__ int at(int line, int depth) {
    return depth * Lines + ((line / 4 ^ (depth >> 1 & 3) << 1) * 4) + line % 4;
  }

  template <int Units, int Blocks>
  __device__ static __forceinline__ void read(const float* operand, int first, int block, int lane,
                                              float (&values)[Units][2 * Blocks]) {
#pragma unroll
    for (int b = 0; b < Blocks; ++b)
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const float* from = operand + at(first + lane / 4 * 4, 8 * (block + b) + lane % 4 * 2 + j);
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

/// Operands rounded to tf32: relative error of a product about 5e-4.
struct Tf32Products {
  static constexpr int kBlocks = 1;  // of eight of the depth, for each instruction

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

/// Operands as sums of two tf32 numbers, three of their four products: float32's error at a third of tf32's rate.
struct Float32Products {
  static constexpr int kBlocks = 1;

  /// The rest is zero where the value has no finite one, so that an infinite value stays so.
  __device__ static __forceinline__ void split(float value, uint32_t& high, uint32_t& low) {
    high = to_tf32(value);
    const float rest = value - float_of(high);
    low = to_tf32(fabsf(rest) <= fabsf(value) ? rest : 0.0f);
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

/// Operands rounded to bf16: relative error of a product about 4e-3.
struct Bf16Products {
  static constexpr int kBlocks = 2;

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
__device__ __forceinline__ void multiply_stage(const float* a, const float* b, const Place<T>& place, Sums<T>& sum) {
  constexpr int kBlocks = Products::kBlocks;
#pragma unroll
  for (int block = 0; block < T::kDepth / 8; block += kBlocks) {
    float left[T::kUnitsM][2 * kBlocks], right[T::kUnitsN][2 * kBlocks];
    LayoutA::template read<T::kUnitsM, kBlocks>(a, place.row, block, place.lane, left);
    LayoutB::template read<T::kUnitsN, kBlocks>(b, place.column, block, place.lane, right);
    Products::template multiply<T::kUnitsM, T::kUnitsN>(left, right, sum);
  }
}

/// sum = the products of the steps [first, last) of the depth, kDepth each. A loader's load(operand, step) starts the
/// calling thread's copies of one step. All threads of the block are done with `shared` when it returns.
template <class T, class Products, class LoaderA, class LoaderB>
__device__ __forceinline__ void multiply_tile(const LoaderA& a, const LoaderB& b, int first, int last, float* shared,
                                              Sums<T>& sum) {
#pragma unroll
  for (int i = 0; i < T::kUnitsM / 2; ++i)
#pragma unroll
    for (int j = 0; j < T::kUnitsN; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) sum[i][j][e] = 0.0f;
  const auto load = [&](int step, int stage) {
    float* operands = shared + stage * T::kStageFloats;
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
    const float* operands = shared + stage * T::kStageFloats;
    multiply_stage<T, Products, typename LoaderA::Layout, typename LoaderB::Layout>(
        operands, operands + T::kM * T::kDepth, place, sum);
    stage = stage == T::kStages - 1 ? 0 : stage + 1;
  }
  wait_copies<0>();
  __syncthreads();
}

/// Calls use(row, column, four) for each four consecutive results of the calling thread, rows and columns from the
/// block's first; `four` may be changed.
template <class T, class Use>
__device__ __forceinline__ void for_results(Sums<T>& sum, Use use) {
  const Place<T> place;
  const int g = place.lane / 4, t = place.lane % 4;
#pragma unroll
  for (int u = 0; u < T::kUnitsM; ++u) {
    const int row = place.row + unit_line(u, g);
#pragma unroll
    for (int j = 0; j < T::kUnitsN; j += 4)
#pragma unroll
      for (int v = 0; v < 2; ++v) {
        const int e = u % 2 * 2 + v;
        float (&s)[T::kUnitsN][4] = sum[u / 2];
        float4 four = make_float4(s[j][e], s[j + 1][e], s[j + 2][e], s[j + 3][e]);
        use(row, place.column + unit_line(j, 2 * t + v), four);
        s[j][e] = four.x;
        s[j + 1][e] = four.y;
        s[j + 2][e] = four.z;
        s[j + 3][e] = four.w;
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

/// sum = the parts [first, first + count) added in order.
template <class T>
__device__ __forceinline__ void add_parts(float* parts, int64_t first, int count, Sums<T>& sum) {
  for (int i = 0; i < count; ++i) {
    const float* from = part_of<T>(parts, first + i);
    for_results<T>(sum, [&](int, int, float4& four) {
      const float4 more = *reinterpret_cast<const float4*>(from);
      if (i == 0) {
        four = more;
      } else {
        four.x += more.x;
        four.y += more.y;
        four.z += more.z;
        four.w += more.w;
      }
      from += 4 * T::kThreads;
    });
  }
}

}  // namespace medmpi::cuda
