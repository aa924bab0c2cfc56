// The fully connected layer. All three products go to the packed matrix product, but for a handful of samples: then
// the weights are met once per call, the product is bound by reading them, and they are streamed in memory order.
// A sample's result has the same bits either way: sums run over the depth in order, in the product's blocks.
#include "ops/linear.h"

#include "cpu/gemm.h"

namespace medmpi::MEDMPI_ISA {
namespace {

constexpr int64_t kStrip = 2048;    // output columns of one chunk: 8 KB of each row of weights
constexpr int64_t kRowBlock = 256;  // rows summed before the bias' strip is added
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
        Vec all = load(sum[i] + j);
        all += w0 * a[0];
        all += w1 * a[1];
        all += w2 * a[2];
        all += w3 * a[3];
        store(sum[i] + j, all);
      }
    }
    for (; j < cols; ++j)
      for (int i = 0; i < Samples; ++i) {
        const float* a = x + i * x_row + c;
        for (int r = 0; r < 4; ++r) sum[i][j] += w[r * k + j] * a[r];
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
    for (int64_t c = 0; c < g.c; c += kDepth) {
      float sum[Samples][kStrip];
      for (int i = 0; i < Samples; ++i)
        for (int64_t j = 0; j < cols; ++j) sum[i][j] = 0.0f;
      thin_rows<Samples>(x + c, g.c, smaller(kDepth, g.c - c), weight + c * g.k + begin, g.k, cols, sum);
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

/// dx = dy weight^T for a few samples: squares of weights are turned in registers, so that lanes are columns of dx.
template <int Samples>
void thin_backward_data(const LinearShape& g, const float* dy, const float* weight, float* dx) {
  for_chunks(g.c, kRowChunk, [=](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; c += kLanes) {
      const int64_t rows = smaller(kLanes, end - c);
      Vec total[Samples] = {}, sum[Samples] = {};
      for (int64_t j = 0; j < g.k; j += kLanes) {
        const int64_t deep = smaller(kLanes, g.k - j);
        Vec w[kLanes];
#pragma GCC unroll 16
        for (int r = 0; r < kLanes; ++r) {
          const float* at = weight + (c + r) * g.k + j;
          w[r] = r >= rows ? Vec{} : deep == kLanes ? load(at) : load_part(at, deep);
        }
        transpose(w);
#pragma GCC unroll 16
        for (int p = 0; p < kLanes; ++p)
          if (p < deep)
            for (int i = 0; i < Samples; ++i) sum[i] += w[p] * dy[i * g.k + j + p];
        if ((j + kLanes) % kDepth && j + kLanes < g.k) continue;
        for (int i = 0; i < Samples; ++i) {
          total[i] += sum[i];
          sum[i] = Vec{};
        }
      }
      for (int i = 0; i < Samples; ++i) store_part(dx + i * g.c + c, total[i], rows);
    }
  });
}

void backward_data(const LinearShape& g, const float* dy, const float* weight, float* dx) {
  switch (g.m) {
    case 1:
      return thin_backward_data<1>(g, dy, weight, dx);
    case 2:
      return thin_backward_data<2>(g, dy, weight, dx);
    case 3:
      return thin_backward_data<3>(g, dy, weight, dx);
    case 4:
      return thin_backward_data<4>(g, dy, weight, dx);
    default:
      gemm({g.m, g.c, g.k, dy, g.k, 1, weight, 1, g.k, dx, g.c, false, nullptr});
  }
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
