// Softmax, softmax with cross-entropy, accuracy. Up to kNarrow classes a thread handles a row, and a block's rows
// travel through shared memory so that memory sees whole lines; beyond, a warp handles a row along its classes. Partial
// sums belong to blocks of rows fixed by the shape and are added in order.
//
// Scratch: slot 0, partial sums.
#include "cuda/loss.cuh"
#include "cuda/rows.cuh"
#include "ops/loss.h"

namespace medmpi::cuda {
namespace {

constexpr int kNarrow = 32;
constexpr int kRowsPerBlock = 128;  // narrow: one thread each
constexpr int kWarps = 8;           // wide: rows of a block that are handled at a time
constexpr int kWarpRows = 4;        // and how often

/// The labels, their weights, and where the partial sums go.
struct Target {
  const int64_t* labels;
  const float* weight;
  Denominator denominator;
  double* part;
};

template <bool kLoss>
__global__ void __launch_bounds__(kRowsPerBlock)
    narrow_softmax(int64_t m, int k, const float* x, float* y, Target target) {
  SHARED_BYTES(bytes);
  auto* tile = reinterpret_cast<float*>(bytes);
  const int pitch = k | 1;  // odd: a warp's rows begin in different banks
  const int64_t first = int64_t{blockIdx.x} * kRowsPerBlock;
  const int rows = m - first < kRowsPerBlock ? static_cast<int>(m - first) : kRowsPerBlock;
  for (int i = static_cast<int>(threadIdx.x); i < rows * k; i += kRowsPerBlock)
    tile[i / k * pitch + i % k] = x[first * k + i];
  __syncthreads();
  double loss = 0.0;
  if (static_cast<int>(threadIdx.x) < rows) {
    float* row = tile + static_cast<int>(threadIdx.x) * pitch;
    float top = row[0];
    for (int j = 1; j < k; ++j) top = row[j] > top ? row[j] : top;
    const int label = kLoss ? static_cast<int>(target.labels[first + threadIdx.x]) : 0;
    const float picked = kLoss ? row[label] : 0.0f;
    float sum = 0.0f;
    for (int j = 0; j < k; ++j) {
      const float e = expf(row[j] - top);
      row[j] = e;
      sum += e;
    }
    float scale = 1.0f / sum;
    if constexpr (kLoss) {
      const double w = target.weight ? static_cast<double>(target.weight[label]) : 1.0;
      const float factor = static_cast<float>(w / target.denominator.get());
      loss = w * static_cast<double>(logf(sum) + (top - picked));
      scale *= factor;
      for (int j = 0; j < k; ++j) row[j] *= scale;
      row[label] -= factor;
    } else {
      for (int j = 0; j < k; ++j) row[j] *= scale;
    }
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < rows * k; i += kRowsPerBlock)
    y[first * k + i] = tile[i / k * pitch + i % k];
  if constexpr (kLoss) {
    loss = block_sum(loss);
    if (threadIdx.x == 0) target.part[blockIdx.x] = loss;
  }
}

template <bool kLoss>
__global__ void __launch_bounds__(32 * kWarps)
    wide_softmax(int64_t m, int64_t k, const float* x, float* y, Target target) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  double loss = 0.0;
  for (int turn = 0; turn < kWarpRows; ++turn) {
    const int64_t i = (int64_t{blockIdx.x} * kWarpRows + turn) * kWarps + warp;
    if (i >= m) break;  // the same for all lanes
    const float* from = x + i * k;
    float* to = y + i * k;
    float top = -INFINITY;
    for (int64_t j = lane; j < k; j += 32) top = from[j] > top ? from[j] : top;
    top = warp_max(top);
    const int64_t label = kLoss ? target.labels[i] : 0;
    const float picked = kLoss ? from[label] : 0.0f;
    float sum = 0.0f;
    for (int64_t j = lane; j < k; j += 32) sum += expf(from[j] - top);
    sum = warp_sum(sum);
    float scale = 1.0f / sum, factor = 0.0f;
    if constexpr (kLoss) {
      const double w = target.weight ? static_cast<double>(target.weight[label]) : 1.0;
      factor = static_cast<float>(w / target.denominator.get());
      if (lane == 0) loss += w * static_cast<double>(logf(sum) + (top - picked));
      scale *= factor;
      __syncwarp();  // all have read the label's logit: y may be x
    }
    for (int64_t j = lane; j < k; j += 32) {
      const float p = expf(from[j] - top) * scale;
      to[j] = kLoss && j == label ? p - factor : p;
    }
  }
  if constexpr (kLoss) {
    loss = block_sum(loss);
    if (threadIdx.x == 0) target.part[blockIdx.x] = loss;
  }
}

int64_t blocks_of(int64_t m, int64_t k) {
  const int64_t rows = k <= kNarrow ? kRowsPerBlock : kWarps * kWarpRows;
  return (m + rows - 1) / rows;
}

template <bool kLoss>
void run_softmax(int64_t m, int64_t k, const float* x, float* y, const Target& target) {
  const auto blocks = static_cast<unsigned>(blocks_of(m, k));
  if (k <= kNarrow) {
    const auto bytes = static_cast<size_t>(kRowsPerBlock * (k | 1)) * sizeof(float);
    launch(narrow_softmax<kLoss>, blocks, kRowsPerBlock, bytes, m, static_cast<int>(k), x, y, target);
  } else {
    launch(wide_softmax<kLoss>, blocks, 32 * kWarps, 0, m, k, x, y, target);
  }
}

// --- labels ---------------------------------------------------------------------------------------------------------

constexpr int64_t kLabelChunk = 1 << 13;
constexpr unsigned long long kNoRow = ~0ull;

__global__ void __launch_bounds__(kThreads)
    check_chunk(int64_t m, int64_t k, const int64_t* labels, const float* weight, unsigned long long* outside,
                double* part) {
  const int64_t begin = blockIdx.x * kLabelChunk, end = begin + kLabelChunk < m ? begin + kLabelChunk : m;
  double sum = 0.0;
  unsigned long long bad = kNoRow;
  for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
    const int64_t label = labels[i];
    if (label < 0 || label >= k)
      bad = bad == kNoRow ? static_cast<unsigned long long>(i) : bad;
    else if (weight)
      sum += static_cast<double>(weight[label]);
  }
  if (bad != kNoRow) atomicMin(outside, bad);
  sum = block_sum(sum);
  if (threadIdx.x == 0) part[blockIdx.x] = sum;
}

struct Found {
  unsigned long long outside;
  double weights;
};

bool check_labels(int64_t m, int64_t k, const int64_t* labels, const float* weight, LabelCheck* found) {
  *found = {-1, weight ? 0.0 : static_cast<double>(m)};
  if (m <= 0) return true;
  const int64_t chunks = (m + kLabelChunk - 1) / kLabelChunk;
  auto* result = static_cast<Found*>(device_scratch(0, sizeof(Found) + static_cast<size_t>(chunks) * sizeof(double)));
  auto* part = reinterpret_cast<double*>(result + 1);
  check(cudaMemsetAsync(&result->outside, 0xff, sizeof result->outside, stream()), "cudaMemsetAsync");
  launch(check_chunk, static_cast<unsigned>(chunks), kThreads, 0, m, k, labels, weight, &result->outside, part);
  launch(sum_partials<double>, 1, kThreads, 0, chunks, part, 1.0, &result->weights);
  Found host;
  copy_to_host(&host, result, sizeof host);
  if (host.outside != kNoRow) found->outside = static_cast<int64_t>(host.outside);
  if (weight) found->weights = host.weights;
  return true;
}

// --- cross-entropy --------------------------------------------------------------------------------------------------

bool cross_entropy(int64_t m, int64_t k, const float* x, const int64_t* labels, const float* weight,
                   Denominator denominator, double* loss, float* dx) {
  if (m <= 0) {
    set_zero(loss, sizeof *loss);
    return true;
  }
  const int64_t blocks = blocks_of(m, k);
  auto* part = static_cast<double*>(device_scratch(0, static_cast<size_t>(blocks) * sizeof(double)));
  run_softmax<true>(m, k, x, dx, Target{labels, weight, denominator, part});
  finish_loss(blocks, part, denominator, loss);
  return true;
}
bool softmax_cross_entropy(int64_t m, int64_t k, const float* x, const int64_t* labels, const float* weight,
                           double denominator, double* loss, float* dx) {
  return cross_entropy(m, k, x, labels, weight, {denominator, nullptr}, loss, dx);
}
bool softmax_cross_entropy_by(int64_t m, int64_t k, const float* x, const int64_t* labels, const float* weight,
                              const double* denominator, double* loss, float* dx) {
  return cross_entropy(m, k, x, labels, weight, {0.0, denominator}, loss, dx);
}

// --- accuracy -------------------------------------------------------------------------------------------------------

__global__ void __launch_bounds__(kThreads)
    count_rows(int64_t m, int64_t k, const float* x, const int64_t* labels, unsigned long long* count) {
  int mine = 0;
  for (int64_t i = first_of_grid(); i < m; i += size_of_grid()) {
    const float* row = x + i * k;
    int64_t best = 0;
    for (int64_t j = 1; j < k && row[best] == row[best]; ++j)
      if (row[j] > row[best] || row[j] != row[j]) best = j;
    mine += best == labels[i];
  }
  mine = block_sum(mine);
  if (threadIdx.x == 0 && mine) atomicAdd(count, static_cast<unsigned long long>(mine));
}

void count_correct(int64_t m, int64_t k, const float* x, const int64_t* labels, int64_t* count) {
  set_zero(count, sizeof *count);
  if (m > 0)
    launch(count_rows, blocks_for(m, kThreads), kThreads, 0, m, k, x, labels,
           reinterpret_cast<unsigned long long*>(count));
}

/// *loss = the sum of the partial ones by the denominator.
__global__ void __launch_bounds__(kThreads)
    whole_loss(int64_t count, const double* part, Denominator denominator, double* loss) {
  double sum = 0.0;
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) sum += part[i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) *loss = sum * (1.0 / denominator.get());
}

}  // namespace

void finish_loss(int64_t count, const double* part, Denominator denominator, double* loss) {
  launch(whole_loss, 1, kThreads, 0, count, part, denominator, loss);
}

void softmax(int64_t m, int64_t k, const float* x, float* y) {
  if (m > 0 && k > 0) run_softmax<false>(m, k, x, y, Target{});
}

extern const LossOps loss;
const LossOps loss = {softmax, check_labels, softmax_cross_entropy, dice, softmax_cross_entropy_by,
                      dice_by, count_correct};

}  // namespace medmpi::cuda
