// Sums, scalings and checks: one pass over memory each.
#include "cuda/block.cuh"
#include "cuda/elements.cuh"
#include "ops/elementwise.h"

namespace medmpi::cuda {
namespace {

struct Add {
  bool relu;
  __device__ void operator()(const float (&in)[2], float (&y)[1]) const {
    const float sum = in[0] + in[1];
    y[0] = relu && sum < 0.0f ? 0.0f : sum;
  }
};
struct Accumulate {
  float alpha;
  __device__ void operator()(const float (&in)[2], float (&y)[1]) const { y[0] = in[1] + alpha * in[0]; }
};
struct Scale {
  float factor;
  __device__ void operator()(const float (&x)[1], float (&y)[1]) const { y[0] = x[0] * factor; }
};

void add(int64_t n, const float* a, const float* b, bool relu, float* y) { map<2, 1>(n, {{a, b}}, {{y}}, Add{relu}); }
void accumulate(int64_t n, float alpha, const float* x, float* y) { map<2, 1>(n, {{x, y}}, {{y}}, Accumulate{alpha}); }
void scale(int64_t n, float factor, float* y) { map<1, 1>(n, {{y}}, {{y}}, Scale{factor}); }

template <typename T>
__global__ void __launch_bounds__(kThreads) fill_values(int64_t n, T value, T* y) {
  for (int64_t i = first_of_grid(); i < n; i += size_of_grid()) y[i] = value;
}
void fill(int64_t n, float value, float* y) {
  if (n <= 0) return;
  const int64_t fours = aligned16(y) ? n / 4 : 0, rest = n - 4 * fours;
  if (fours)
    launch(fill_values<float4>, blocks_for(fours, kThreads), kThreads, 0, fours,
           make_float4(value, value, value, value), reinterpret_cast<float4*>(y));
  if (rest) launch(fill_values<float>, blocks_for(rest, kThreads), kThreads, 0, rest, value, y + 4 * fours);
}

/// Chunks of a sum, by the size alone.
constexpr int64_t kChunk = 1 << 13, kMaxChunks = 2048;
int64_t chunk_of(int64_t n) {
  const int64_t even = (n + kMaxChunks - 1) / kMaxChunks;
  return even > kChunk ? (even + kThreads - 1) / kThreads * kThreads : kChunk;
}

__global__ void __launch_bounds__(kThreads) square_chunk(int64_t n, int64_t chunk, const float* x, double* part) {
  const int64_t begin = blockIdx.x * chunk, end = begin + chunk < n ? begin + chunk : n;
  double sum = 0.0;
#pragma unroll 4
  for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
    const double v = static_cast<double>(x[i]);
    sum += v * v;
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) part[blockIdx.x] = sum;
}

double sum_squares(int64_t n, const float* x) {
  if (n <= 0) return 0.0;
  const int64_t chunk = chunk_of(n), chunks = (n + chunk - 1) / chunk;
  auto* part = static_cast<double*>(device_scratch(0, static_cast<size_t>(chunks + 1) * sizeof(double)));
  launch(square_chunk, static_cast<unsigned>(chunks), kThreads, 0, n, chunk, x, part);
  launch(sum_partials<double>, 1, kThreads, 0, chunks, part, 1.0, part + chunks);
  double sum = 0.0;
  copy_to_host(&sum, part + chunks, sizeof sum);
  return sum;
}

__global__ void __launch_bounds__(kThreads) find_broken(int64_t n, const float* x, int* broken) {
  bool found = false;
  for (int64_t i = first_of_grid(); i < n; i += size_of_grid())
    found = found || (__float_as_uint(x[i]) & 0x7f800000u) == 0x7f800000u;
  if (found) atomicOr(broken, 1);
}

bool all_finite(int64_t n, const float* x) {
  if (n <= 0) return true;
  auto* broken = static_cast<int*>(device_scratch(0, sizeof(int)));
  set_zero(broken, sizeof(int));
  launch(find_broken, blocks_for(n, 8 * kThreads), kThreads, 0, n, x, broken);
  int found = 0;
  copy_to_host(&found, broken, sizeof found);
  return !found;
}

/// Rounded twice, as by numpy, so that images that are normalised here are those of the host.
__device__ __forceinline__ float normalized(uint8_t x, float scale_by, float shift) {
  return __fadd_rn(__fmul_rn(static_cast<float>(x), scale_by), shift);
}

/// Four values of each thread, or one; the channel of the next round is found by adding.
template <bool kFours>
__global__ void __launch_bounds__(kThreads)
    normalize_values(int64_t n, uint32_t c, const uint8_t* x, const float* scale_by, const float* shift, float* y) {
  constexpr uint32_t kEach = kFours ? 4 : 1;
  const auto step = static_cast<uint32_t>(size_of_grid() * kEach % c);
  auto j = static_cast<uint32_t>(first_of_grid() * kEach % c);
  for (int64_t i = first_of_grid(); i < n; i += size_of_grid()) {
    if constexpr (kFours) {
      const uchar4 v = reinterpret_cast<const uchar4*>(x)[i];
      const uint8_t in[4] = {v.x, v.y, v.z, v.w};
      float out[4];
      uint32_t k = j;
#pragma unroll
      for (int u = 0; u < 4; ++u) {
        out[u] = normalized(in[u], scale_by[k], shift[k]);
        k = k + 1 == c ? 0 : k + 1;
      }
      reinterpret_cast<float4*>(y)[i] = make_float4(out[0], out[1], out[2], out[3]);
    } else {
      y[i] = normalized(x[i], scale_by[j], shift[j]);
    }
    j += step;
    j = j >= c ? j - c : j;
  }
}

void normalize(int64_t m, int64_t c, const uint8_t* x, const float* scale_by, const float* shift, float* y) {
  if (m * c <= 0) return;
  const auto bytes = static_cast<size_t>(c) * sizeof(float);
  const auto* factors = static_cast<const float*>(device_constant(scale_by, bytes));
  const auto* terms = static_cast<const float*>(device_constant(shift, bytes));
  const bool fours = m * c % 4 == 0 && aligned16(y) && reinterpret_cast<uintptr_t>(x) % 4 == 0;
  const int64_t count = fours ? m * c / 4 : m * c;
  launch(fours ? normalize_values<true> : normalize_values<false>, blocks_for(count, 2 * kThreads), kThreads, 0, count,
         static_cast<uint32_t>(c), x, factors, terms, y);
}

}  // namespace

extern const ElementwiseOps elementwise;
const ElementwiseOps elementwise = {add, accumulate, scale, fill, sum_squares, all_finite, normalize};

}  // namespace medmpi::cuda
