// The fully connected layer. All three products go to the packed matrix product, but for a handful of samples: then
// the weights are met once per call, the product is bound by reading them, and they are streamed in memory order.
#include "ops/linear.h"

#include "cpu/gemm.h"

namespace medmpi::MEDMPI_ISA {
namespace {

constexpr int64_t kThin = 4;        // at most so many samples are streamed
constexpr int64_t kStrip = 2048;    // output columns of one chunk: 8 KB of each row of weights
constexpr int64_t kRowBlock = 256;  // rows of weights summed before the strip is added to y
constexpr int64_t kRowChunk = 16;   // rows of weights of one chunk in the backward products

/// Adds Samples x (4 rows of weights) to the strip's sums.
template <int Samples>
inline void thin_rows(const float* x, int64_t x_row, int64_t rows, const float* weight, int64_t k, int64_t cols,
                      float (*sum)[kStrip]) {
  int64_t c = 0;
  for (; c + 4 <= rows; c += 4) {
    const float* w = weight + c * k;
    int64_t j = 0;
    for (; j + kLanes <= cols; j += kLanes) {
      const Vec w0 = load(w + j), w1 = load(w + k + j), w2 = load(w + 2 * k + j), w3 = load(w + 3 * k + j);
      for (int i = 0; i < Samples; ++i) {
        const float* a = x + i * x_row + c;
        store(sum[i] + j, load(sum[i] + j) + ((w0 * a[0] + w1 * a[1]) + (w2 * a[2] + w3 * a[3])));
      }
    }
    for (; j < cols; ++j)
      for (int i = 0; i < Samples; ++i) {
        const float* a = x + i * x_row + c;
        sum[i][j] += (w[j] * a[0] + w[k + j] * a[1]) + (w[2 * k + j] * a[2] + w[3 * k + j] * a[3]);
      }
  }
  for (; c < rows; ++c)
    for (int i = 0; i < Samples; ++i)
      for (int64_t j = 0; j < cols; ++j) sum[i][j] += x[i * x_row + c] * weight[c * k + j];
}

template <int Samples>
void thin_forward(const LinearShape& g, const float* x, const float* weight, const float* bias, float* y) {
  for_chunks(g.k, kStrip, [=](int64_t begin, int64_t end) {
    const int64_t cols = end - begin;
    for (int i = 0; i < Samples; ++i)
      for (int64_t j = 0; j < cols; ++j) y[i * g.k + begin + j] = bias ? bias[begin + j] : 0.0f;
    for (int64_t c = 0; c < g.c; c += kRowBlock) {
      float sum[Samples][kStrip];
      for (int i = 0; i < Samples; ++i)
        for (int64_t j = 0; j < cols; ++j) sum[i][j] = 0.0f;
      thin_rows<Samples>(x + c, g.c, smaller(kRowBlock, g.c - c), weight + c * g.k + begin, g.k, cols, sum);
      for (int i = 0; i < Samples; ++i)
        for (int64_t j = 0; j < cols; ++j) y[i * g.k + begin + j] += sum[i][j];
    }
  });
}

void forward(const LinearShape& g, const float* x, const float* weight, const float* bias, float* y) {
  switch (g.m) {
    case 1:
      return thin_forward<1>(g, x, weight, bias, y);
    case 2:
      return thin_forward<2>(g, x, weight, bias, y);
    case 3:
      return thin_forward<3>(g, x, weight, bias, y);
    case 4:
      return thin_forward<4>(g, x, weight, bias, y);
    default:
      gemm({g.m, g.k, g.c, x, g.c, 1, weight, g.k, 1, y, g.k, false, bias});
  }
}

/// dx = dy weight^T for a few samples: one dot product per row of weights and sample, four partial sums each.
void thin_backward_data(const LinearShape& g, const float* dy, const float* weight, float* dx) {
  for_chunks(g.c, kRowChunk, [=](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c)
      for (int64_t i = 0; i < g.m; ++i) {
        const float *w = weight + c * g.k, *d = dy + i * g.k;
        Vec sum[4] = {};
        int64_t j = 0;
        for (; j + 4 * kLanes <= g.k; j += 4 * kLanes)
          for (int v = 0; v < 4; ++v) sum[v] += load(w + j + v * kLanes) * load(d + j + v * kLanes);
        for (; j + kLanes <= g.k; j += kLanes) sum[0] += load(w + j) * load(d + j);
        const Vec all = (sum[0] + sum[1]) + (sum[2] + sum[3]);
        float total = 0.0f;
        for (int v = 0; v < kLanes; ++v) total += all[v];
        for (; j < g.k; ++j) total += w[j] * d[j];
        dx[i * g.c + c] = total;
      }
  });
}

void backward_data(const LinearShape& g, const float* dy, const float* weight, float* dx) {
  if (g.m <= kThin) return thin_backward_data(g, dy, weight, dx);
  gemm({g.m, g.c, g.k, dy, g.k, 1, weight, 1, g.k, dx, g.c, false, nullptr});
}

/// dweight += x^T dy for a few samples: each row of dweight is read and written once, in memory order.
template <int Samples>
void thin_backward_weight(const LinearShape& g, const float* dy, const float* x, float* dweight) {
  for_chunks(g.c, kRowChunk, [=](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      float* d = dweight + c * g.k;
      int64_t j = 0;
      for (; j + kLanes <= g.k; j += kLanes) {
        Vec sum = load(d + j);
        for (int i = 0; i < Samples; ++i) sum += load(dy + i * g.k + j) * x[i * g.c + c];
        store(d + j, sum);
      }
      for (; j < g.k; ++j)
        for (int i = 0; i < Samples; ++i) d[j] += dy[i * g.k + j] * x[i * g.c + c];
    }
  });
}

void backward_weight(const LinearShape& g, const float* dy, const float* x, float* dweight) {
  switch (g.m) {
    case 0:
      return;
    case 1:
      return thin_backward_weight<1>(g, dy, x, dweight);
    case 2:
      return thin_backward_weight<2>(g, dy, x, dweight);
    case 3:
      return thin_backward_weight<3>(g, dy, x, dweight);
    case 4:
      return thin_backward_weight<4>(g, dy, x, dweight);
    default:
      gemm({g.c, g.k, g.m, x, 1, g.c, dy, g.k, 1, dweight, g.k, true, nullptr});
  }
}

/// Sums blocks of kRowBlock rows, then adds the block's sum: a long batch loses no more than a short one.
void backward_bias(const LinearShape& g, const float* dy, float* dbias) {
  for_chunks(g.k, kStrip, [=](int64_t begin, int64_t end) {
    float sum[kStrip];
    for (int64_t row = 0; row < g.m; row += kRowBlock) {
      for (int64_t j = 0; j < end - begin; ++j) sum[j] = 0.0f;
      for (int64_t i = row; i < smaller(row + kRowBlock, g.m); ++i)
        for (int64_t j = begin; j < end; ++j) sum[j - begin] += dy[i * g.k + j];
      for (int64_t j = begin; j < end; ++j) dbias[j] += sum[j - begin];
    }
  });
}

}  // namespace

extern const LinearOps linear;
const LinearOps linear = {forward, backward_data, backward_weight, backward_bias};

}  // namespace medmpi::MEDMPI_ISA
