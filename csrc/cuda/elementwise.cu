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

__global__ void __launch_bounds__(kThreads) fill_values(int64_t n, float value, float* y) {
  for (int64_t i = first_of_grid(); i < n; i += size_of_grid()) y[i] = value;
}
void fill(int64_t n, float value, float* y) {
  if (n > 0) launch(fill_values, blocks_for(n, 4 * kThreads), kThreads, 0, n, value, y);
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

__global__ void __launch_bounds__(kThreads)
    normalize_values(int64_t n, uint32_t c, const uint8_t* x, const float* scale_by, const float* shift, float* y) {
  const auto step = static_cast<uint32_t>(size_of_grid() % c);
  auto j = static_cast<uint32_t>(first_of_grid() % c);
  for (int64_t i = first_of_grid(); i < n; i += size_of_grid()) {
    y[i] = static_cast<float>(x[i]) * scale_by[j] + shift[j];
    j += step;
    j = j >= c ? j - c : j;
  }
}

void normalize(int64_t m, int64_t c, const uint8_t* x, const float* scale_by, const float* shift, float* y) {
  if (m * c <= 0) return;
  const auto bytes = static_cast<size_t>(c) * sizeof(float);
  const auto* factors = static_cast<const float*>(device_constant(scale_by, bytes));
  const auto* terms = static_cast<const float*>(device_constant(shift, bytes));
  launch(normalize_values, blocks_for(m * c, 8 * kThreads), kThreads, 0, m * c, static_cast<uint32_t>(c), x, factors,
         terms, y);
}

}  // namespace

extern const ElementwiseOps elementwise;
const ElementwiseOps elementwise = {add, accumulate, scale, fill, sum_squares, all_finite, normalize};

}  // namespace medmpi::cuda
