// Softmax, softmax with cross-entropy, soft Dice. Up to kNarrow classes a thread handles a row, and a block's rows
// travel through shared memory so that memory sees whole lines; beyond, a warp handles a row along its classes. Partial
// sums belong to blocks of rows fixed by the shape and are added in order.
//
// Scratch: slot 0, partial sums.
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
  double denominator;
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
      const float factor = static_cast<float>(w / target.denominator);
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
      factor = static_cast<float>(w / target.denominator);
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

void softmax(int64_t m, int64_t k, const float* x, float* y) {
  if (m > 0 && k > 0) run_softmax<false>(m, k, x, y, Target{});
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

bool softmax_cross_entropy(int64_t m, int64_t k, const float* x, const int64_t* labels, const float* weight,
                           double denominator, double* loss, float* dx) {
  if (m <= 0) {
    set_zero(loss, sizeof *loss);
    return true;
  }
  const int64_t blocks = blocks_of(m, k);
  auto* part = static_cast<double*>(device_scratch(0, static_cast<size_t>(blocks) * sizeof(double)));
  run_softmax<true>(m, k, x, dx, Target{labels, weight, denominator, part});
  launch(sum_partials<double>, 1, kThreads, 0, blocks, part, 1.0 / denominator, loss);
  return true;
}

// --- Dice -----------------------------------------------------------------------------------------------------------

constexpr int64_t kDiceValues = 1 << 14, kDiceChunks = 256;

/// part[image][chunk][3][k]: sums of p t, p and t.
__global__ void __launch_bounds__(kThreads) dice_sums(RowTiles t, const float* p, const int64_t* labels, double* part) {
  const int64_t image = blockIdx.z, begin = blockIdx.y * t.rows;
  const int64_t end = begin + t.rows < t.m ? begin + t.rows : t.m, j = t.channel<1>();
  double sums[3][1] = {};
  if (j < t.c)
    for (int64_t i = begin + t.pass_row(); i < end; i += t.rows_per_pass) {
      const int64_t row = image * t.m + i;
      const double value = static_cast<double>(p[row * t.c + j]);
      sums[1][0] += value;
      if (labels[row] == j) {
        sums[0][0] += value;
        sums[2][0] += 1.0;
      }
    }
#pragma unroll
  for (int a = 0; a < 3; ++a) sum_over_rows<1>(t, sums[a]);
  if (j >= t.c || t.pass_row()) return;
  double* mine = part + (image * t.chunks + blockIdx.y) * 3 * t.c + j;
#pragma unroll
  for (int a = 0; a < 3; ++a) mine[a * t.c] = sums[a][0];
}

struct DiceRule {
  double smooth, denominator;
  int64_t first;
};

/// slopes[image][own, other][k] and the loss of each image; one warp an image.
__global__ void __launch_bounds__(32)
    dice_slopes(RowTiles t, DiceRule rule, const double* part, double* slopes, double* losses) {
  const int64_t image = blockIdx.x;
  double score = 0.0;
  for (int64_t j = threadIdx.x; j < t.c; j += 32) {
    double total[3] = {};
    for (int64_t i = 0; i < t.chunks; ++i)
      for (int a = 0; a < 3; ++a) total[a] += part[((image * t.chunks + i) * 3 + a) * t.c + j];
    const double both = 2.0 * total[0] + rule.smooth, size = total[1] + total[2] + rule.smooth;
    const double share = j < rule.first ? 0.0 : 1.0 / (static_cast<double>(t.c - rule.first) * rule.denominator);
    score += j < rule.first ? 0.0 : both / size;
    slopes[image * 2 * t.c + j] = -2.0 * share / size;
    slopes[(image * 2 + 1) * t.c + j] = share * both / (size * size);
  }
  score = warp_sum(score);
  if (threadIdx.x == 0) losses[image] = 1.0 - score / static_cast<double>(t.c - rule.first);
}

/// Turns p into dx: dx_j = p_j (g_j - sum_i p_i g_i), where g_j = other[j] + (label == j ? own[j] : 0).
__global__ void __launch_bounds__(kThreads)
    dice_gradient(int64_t rows, int64_t m, int64_t k, const int64_t* labels, const double* slopes, float* p) {
  for (int64_t i = first_of_grid(); i < rows; i += size_of_grid()) {
    const double *own = slopes + i / m * 2 * k, *other = own + k;
    const int64_t label = labels[i];
    float* row = p + i * k;
    const double at_label = static_cast<double>(row[label]) * own[label];
    double mean = at_label;
    for (int64_t j = 0; j < k; ++j) mean += static_cast<double>(row[j]) * other[j];
    for (int64_t j = 0; j < k; ++j) {
      const float value = static_cast<float>(static_cast<double>(row[j]) * (other[j] - mean));
      row[j] = j == label ? value + static_cast<float>(at_label) : value;
    }
  }
}

bool dice(int64_t n, int64_t m, int64_t k, const float* x, const int64_t* labels, double smooth, int64_t first,
          double denominator, double* loss, float* dx) {
  if (n <= 0) {
    set_zero(loss, sizeof *loss);
    return true;
  }
  const RowTiles t = tile_rows(m, k, 1, kDiceValues, kDiceChunks);
  const int64_t sums = n * t.chunks * 3 * k;
  auto* part = static_cast<double*>(device_scratch(0, static_cast<size_t>(sums + n * 2 * k + n) * sizeof(double)));
  double *slopes = part + sums, *losses = slopes + n * 2 * k;
  softmax(n * m, k, x, dx);
  for (int64_t image = 0; image < n; image += 65535) {  // as many as a grid's third side has room for
    const auto images = static_cast<unsigned>(std::min<int64_t>(n - image, 65535));
    const dim3 grid(static_cast<unsigned>(t.tiles), static_cast<unsigned>(t.chunks), images);
    launch(dice_sums, grid, kThreads, 0, t, dx + image * m * k, labels + image * m, part + image * t.chunks * 3 * k);
  }
  const DiceRule rule{smooth, denominator, first};
  launch(dice_slopes, static_cast<unsigned>(n), 32, 0, t, rule, part, slopes, losses);
  launch(sum_partials<double>, 1, kThreads, 0, n, losses, 1.0 / denominator, loss);
  if (m > 0) launch(dice_gradient, blocks_for(n * m, kThreads), kThreads, 0, n * m, m, k, labels, slopes, dx);
  return true;
}

}  // namespace

extern const LossOps loss;
const LossOps loss = {softmax, check_labels, softmax_cross_entropy, dice};

}  // namespace medmpi::cuda
