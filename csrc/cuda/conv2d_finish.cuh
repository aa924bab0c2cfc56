#pragma once
// What becomes of a block's sums: bias, residual, ReLU, the result in memory, and the moments of what was written. A
// block writes the moments of its rows, and conv2d_moments.cu merges those of all blocks, in order and in float64.
#include "cuda/conv2d_tile.cuh"

namespace medmpi::cuda {

struct Finish {
  float* y;
  const float *bias, *residual;  // or null
  bool relu, by_fours;
  int64_t pixel;            // channels of all groups
  int channels;             // of a group
  int h, w;                 // of the result
  int step_h, step_w;       // from lattice point to lattice point
  double *means, *squares;  // (row tiles, channels of all groups), or null
};

/// The moments of a block's columns over its first `rows` rows: the mean as a float32 mean and the mean deviation from
/// it, so that nothing is lost where the spread is small.
template <class T>
__device__ __forceinline__ void tile_moments(Sums<T>& sum, int rows, int columns, float* shared, double* means,
                                             double* squares) {
  constexpr int kOwn = 2 * T::kUnitsN;  // columns of a lane, in the order of for_results
  const Place<T> place;
  const int lane = place.lane, warp_row = place.row / T::kWarpM;
  float own[kOwn], deviation[kOwn], square[kOwn];
  const auto column_of = [&](int i) { return place.column + column_of_four<T>(i / 4, lane) + i % 4; };
  const auto share = [&](float (&values)[kOwn], float* table) {
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
#pragma unroll
      for (int distance = 4; distance < 32; distance *= 2)
        values[i] += __shfl_xor_sync(0xffffffffu, values[i], distance);
      if (lane < 4) table[warp_row * T::kN + column_of(i)] = values[i];
    }
  };
  const auto total = [&](const float* table, int column) {
    float all = 0.0f;
    for (int i = 0; i < T::kWarpsM; ++i) all += table[i * T::kN + column];
    return all;
  };
  float *deviations = shared + T::kWarpsM * T::kN, *roots = deviations + T::kWarpsM * T::kN;
  const float inverse = 1.0f / static_cast<float>(rows);

#pragma unroll
  for (int i = 0; i < kOwn; ++i) own[i] = deviation[i] = square[i] = 0.0f;
  int at = 0;
  for_results<T>(sum, [&](int row, int, const float4& four) {
    if (row < rows) {
      own[at] += four.x;
      own[at + 1] += four.y;
      own[at + 2] += four.z;
      own[at + 3] += four.w;
    }
    at = (at + 4) % kOwn;
  });
  share(own, shared);
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kOwn; ++i) own[i] = total(shared, column_of(i)) * inverse;
  for_results<T>(sum, [&](int row, int, const float4& four) {
    if (row < rows) {
      const float d[4] = {four.x - own[at], four.y - own[at + 1], four.z - own[at + 2], four.w - own[at + 3]};
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        deviation[at + e] += d[e];
        square[at + e] += d[e] * d[e];
      }
    }
    at = (at + 4) % kOwn;
  });
  share(deviation, deviations);
  share(square, roots);
  __syncthreads();
  for (int column = static_cast<int>(threadIdx.x); column < columns; column += T::kThreads) {
    const double off = static_cast<double>(total(deviations, column));
    const double n = static_cast<double>(rows), rest = static_cast<double>(total(roots, column)) - off * off / n;
    means[column] = static_cast<double>(total(shared, column) * inverse) + off / n;
    squares[column] = rest < 0.0 ? 0.0 : rest;
  }
}

/// Finishes a block's results; `tile_m` and `tile_n` count tiles. All threads of the block are done with `shared`.
template <class T>
__device__ __forceinline__ void finish_tile(const Finish& f, const Lattice& lattice, int group, int tile_m, int tile_n,
                                            Sums<T>& sum, float* shared) {
  const int first_row = tile_m * T::kM, first_column = tile_n * T::kN;
  const int64_t first_channel = static_cast<int64_t>(group) * f.channels + first_column;
  const int columns = min(T::kN, f.channels - first_column), rows = min(T::kM, lattice.rows - first_row);
  const float* bias = f.bias ? f.bias + first_channel : nullptr;
  const auto pixel_of = [&](int row) {
    int rest, b;
    const int image = lattice.image.quotient(first_row + row, rest), a = lattice.width.quotient(rest, b);
    return (image * f.h + a * f.step_h + lattice.out_h) * f.w + b * f.step_w + lattice.out_w;
  };
  int64_t at_row = 0;
  int known = -1;
  for_results<T>(sum, [&](int row, int column, float4& four) {
    if (row >= rows) return;
    if (row != known) at_row = pixel_of(row) * f.pixel + first_channel;
    known = row;
    const auto done = [&](float value, int e) {
      if (bias) value += bias[column + e];
      if (f.residual) value += f.residual[at_row + column + e];
      return f.relu && value < 0.0f ? 0.0f : value;
    };
    float* to = f.y + at_row + column;
    if (f.by_fours && column < columns) {
      if (bias) {
        const float4 b = *reinterpret_cast<const float4*>(bias + column);
        four = make_float4(four.x + b.x, four.y + b.y, four.z + b.z, four.w + b.w);
      }
      if (f.residual) {
        const float4 r = *reinterpret_cast<const float4*>(f.residual + at_row + column);
        four = make_float4(four.x + r.x, four.y + r.y, four.z + r.z, four.w + r.w);
      }
      if (f.relu)
        four = make_float4(four.x < 0.0f ? 0.0f : four.x, four.y < 0.0f ? 0.0f : four.y, four.z < 0.0f ? 0.0f : four.z,
                           four.w < 0.0f ? 0.0f : four.w);
      *reinterpret_cast<float4*>(to) = four;
      return;
    }
    if (column < columns) to[0] = four.x = done(four.x, 0);
    if (column + 1 < columns) to[1] = four.y = done(four.y, 1);
    if (column + 2 < columns) to[2] = four.z = done(four.z, 2);
    if (column + 3 < columns) to[3] = four.w = done(four.w, 3);
  });
  if (f.means)
    tile_moments<T>(sum, rows, columns, shared, f.means + tile_m * f.pixel + first_channel,
                    f.squares + tile_m * f.pixel + first_channel);
}

}  // namespace medmpi::cuda
