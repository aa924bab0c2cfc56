// Soft Dice: sums of each image and class in chunks of rows fixed by the shape, added in order.
//
// Scratch: slot 0, partial sums.
#include "cuda/loss.cuh"
#include "cuda/rows.cuh"

namespace medmpi::cuda {
namespace {

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
  double smooth;
  Denominator denominator;
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
    const double share = j < rule.first ? 0.0 : 1.0 / (static_cast<double>(t.c - rule.first) * rule.denominator.get());
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

bool dice_loss(int64_t n, int64_t m, int64_t k, const float* x, const int64_t* labels, double smooth, int64_t first,
               Denominator denominator, double* loss, float* dx) {
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
  finish_loss(n, losses, denominator, loss);
  if (m > 0) launch(dice_gradient, blocks_for(n * m, kThreads), kThreads, 0, n * m, m, k, labels, slopes, dx);
  return true;
}

}  // namespace

bool dice(int64_t n, int64_t m, int64_t k, const float* x, const int64_t* labels, double smooth, int64_t first,
          double denominator, double* loss, float* dx) {
  return dice_loss(n, m, k, x, labels, smooth, first, {denominator, nullptr}, loss, dx);
}
bool dice_by(int64_t n, int64_t m, int64_t k, const float* x, const int64_t* labels, double smooth, int64_t first,
             const double* denominator, double* loss, float* dx) {
  return dice_loss(n, m, k, x, labels, smooth, first, {0.0, denominator}, loss, dx);
}

}  // namespace medmpi::cuda
