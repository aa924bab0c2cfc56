#pragma once
// The register tile under every dense kernel here: kTileRows broadcast values times two vectors, the sums kept in
// registers over the whole depth. Operands may be packed or lie anywhere: both advance by a step of their own.
#include "cpu/simd.h"

namespace medmpi::MEDMPI_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kTileRows = 14;  // 28 sums, 2 operands, 2 registers to spare
constexpr int kPitch = 16;     // floats from one depth to the next of a packed row operand: one cache line
#else
constexpr int kTileRows = 6;
constexpr int kPitch = 8;
#endif
constexpr int kPanel = 2 * kLanes;  // columns of a packed column operand

/// acc[i] += a[i] * b[:] over `depth` steps.
template <int Rows, int Vecs>
MEDMPI_INLINE void tile_multiply(Vec (&acc)[Rows][Vecs], int64_t depth, const float* a, int64_t a_step, const float* b,
                                 int64_t b_step) {
  for (int64_t p = 0; p < depth; ++p, a += a_step, b += b_step) {
    Vec column[Vecs];
#pragma GCC unroll 4
    for (int v = 0; v < Vecs; ++v) column[v] = load(b + v * kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) {
      const Vec row = broadcast(a[i]);
#pragma GCC unroll 4
      for (int v = 0; v < Vecs; ++v) acc[i][v] += row * column[v];
    }
  }
}

/// Where a tile goes: `cols` columns of rows `row` floats apart; added to what is there, or written (plus bias).
struct TileOut {
  float* data;
  int64_t row;
  int64_t cols;
  bool accumulate;
  const float* bias;  // null, or `cols` values; only where nothing is accumulated
};

template <int Rows, int Vecs>
MEDMPI_INLINE void tile_store(const Vec (&acc)[Rows][Vecs], const TileOut& out) {
#pragma GCC unroll 4
  for (int v = 0; v < Vecs; ++v) {
    const int64_t cols = out.cols - v * kLanes;
    if (cols >= kLanes) {
      const Vec bias = out.bias ? load(out.bias + v * kLanes) : Vec{};
#pragma GCC unroll 16
      for (int i = 0; i < Rows; ++i) {
        float* c = out.data + i * out.row + v * kLanes;
        store(c, acc[i][v] + (out.accumulate ? load(c) : bias));
      }
    } else if (cols > 0) {
      const Vec bias = out.bias ? load_part(out.bias + v * kLanes, cols) : Vec{};
#pragma GCC unroll 16
      for (int i = 0; i < Rows; ++i) {
        float* c = out.data + i * out.row + v * kLanes;
        store_part(c, acc[i][v] + (out.accumulate ? load_part(c, cols) : bias), cols);
      }
    }
  }
}

template <int... I>
struct Lanes {};
template <int N, int... I>
struct CountLanes : CountLanes<N - 1, N - 1, I...> {};
template <int... I>
struct CountLanes<0, I...> {
  using type = Lanes<I...>;
};

/// Exchanges the blocks of Distance lanes that lie across the diagonal of each pair of rows.
template <int Distance, int... I>
MEDMPI_INLINE void exchange(Vec& a, Vec& b, Lanes<I...>) {
  const Vec low = __builtin_shufflevector(a, b, ((I & Distance) ? I - Distance + kLanes : I)...);
  const Vec high = __builtin_shufflevector(a, b, ((I & Distance) ? I + kLanes : I + Distance)...);
  a = low;
  b = high;
}
template <int Distance>
MEDMPI_INLINE void transpose_level(Vec (&v)[kLanes]) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i)
    if (!(i & Distance)) exchange<Distance>(v[i], v[i + Distance], CountLanes<kLanes>::type{});
}

/// Transposes a square of kLanes vectors.
MEDMPI_INLINE void transpose(Vec (&v)[kLanes]) {
  transpose_level<1>(v);
  transpose_level<2>(v);
  if constexpr (kLanes >= 8) transpose_level<4>(v);
  if constexpr (kLanes >= 16) transpose_level<8>(v);
}

/// to[p * pitch + i] = from[i * row + p] for i < rows and p < depth; zero for rows <= i < width. `width` is a multiple
/// of kLanes.
inline void pack_transposed(const float* from, int64_t row, int64_t rows, int64_t depth, float* to, int64_t pitch,
                            int64_t width) {
  for (int64_t i0 = 0; i0 < width; i0 += kLanes)
    for (int64_t p0 = 0; p0 < depth; p0 += kLanes) {
      const int64_t deep = depth - p0 < kLanes ? depth - p0 : kLanes;
      Vec v[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) {
        const float* at = from + (i0 + i) * row + p0;
        v[i] = i0 + i >= rows ? Vec{} : deep == kLanes ? load(at) : load_part(at, deep);
      }
      transpose(v);
      float* at = to + p0 * pitch + i0;
#pragma GCC unroll 16
      for (int p = 0; p < kLanes; ++p)
        if (p < deep) store(at + p * pitch, v[p]);
    }
}

/// to[p * pitch + i] = from[p * row + i] for i < cols, zero for cols <= i < width, p < depth. `width` is a multiple of
/// kLanes.
inline void pack_rows(const float* from, int64_t row, int64_t cols, int64_t depth, float* to, int64_t pitch,
                      int64_t width) {
  for (int64_t p = 0; p < depth; ++p, from += row, to += pitch) {
    int64_t i = 0;
    for (; i + kLanes <= cols; i += kLanes) store(to + i, load(from + i));
    if (i < cols) {
      store(to + i, load_part(from + i, cols - i));
      i += kLanes;
    }
    for (; i < width; i += kLanes) store(to + i, Vec{});
  }
}

}  // namespace
}  // namespace medmpi::MEDMPI_ISA
