// Softmax, softmax with cross-entropy, soft Dice: one pass over the logits, gradient included.
// Up to kNarrow classes, as many rows as a vector has lanes are transposed and handled side by side, so that two
// classes use the vectors as well as a thousand; beyond, a row is handled along its classes.
// Partial sums belong to chunks of rows fixed by the shape and are added in order.
//
// Scratch: slot 0 of the calling thread, partial sums.
#include "ops/loss.h"

#include "cpu/simd.h"
#include "cpu/threads.h"
#include "cpu/vecmath.h"
#include "ops/scratch.h"

namespace medmpi::MEDMPI_ISA {
namespace {

constexpr int64_t kNarrow = 32;
constexpr int64_t kChunkValues = 1 << 14;

/// Rows of a chunk: whole vectors of rows.
int64_t chunk_rows(int64_t k) {
  const int64_t rows = kChunkValues / (k > 0 ? k : 1);
  return rows < kLanes ? kLanes : rows / kLanes * kLanes;
}

/// The labels, their weights over the denominator, and where the loss of these rows is added.
struct Target {
  const int64_t* labels;
  const float* weight;
  double denominator;
};

/// Row sums' logarithm plus the maximum minus the label's logit is the loss of a row.
template <bool kLoss>
double narrow_rows(int64_t rows, int64_t k, const float* x, float* y, const Target& target, int64_t first) {
  alignas(64) float t[kNarrow * kLanes];
  double loss = 0.0;
  for (int64_t r = 0; r < rows; r += kLanes, x += k * kLanes, y += k * kLanes, first += kLanes) {
    const int64_t n = rows - r < kLanes ? rows - r : kLanes;
    if (n < kLanes) std::memset(t, 0, static_cast<size_t>(k * kLanes) * sizeof(float));
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < k; ++j) t[j * kLanes + i] = x[i * k + j];
    Vec top = load(t);
    for (int64_t j = 1; j < k; ++j) top = max(load(t + j * kLanes), top);
    alignas(64) float picked[kLanes], factor[kLanes];
    if constexpr (kLoss)
      for (int64_t i = 0; i < n; ++i) picked[i] = t[target.labels[first + i] * kLanes + i];
    Vec sum{};
    for (int64_t j = 0; j < k; ++j) {
      const Vec e = exp(load(t + j * kLanes) - top);
      store(t + j * kLanes, e);
      sum += e;
    }
    Vec scale = 1.0f / sum;
    if constexpr (kLoss) {
      alignas(64) float each[kLanes];
      for (int64_t i = n; i < kLanes; ++i) picked[i] = factor[i] = 0.0f;
      store(each, log(sum) + (top - load(picked)));
      for (int64_t i = 0; i < n; ++i) {
        const double w = target.weight ? static_cast<double>(target.weight[target.labels[first + i]]) : 1.0;
        loss += w * static_cast<double>(each[i]);
        factor[i] = static_cast<float>(w / target.denominator);
      }
      scale *= load(factor);
    }
    for (int64_t j = 0; j < k; ++j) store(t + j * kLanes, load(t + j * kLanes) * scale);
    if constexpr (kLoss)
      for (int64_t i = 0; i < n; ++i) t[target.labels[first + i] * kLanes + i] -= factor[i];
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < k; ++j) y[i * k + j] = t[j * kLanes + i];
  }
  return loss;
}

template <bool kLoss>
double wide_rows(int64_t rows, int64_t k, const float* x, float* y, const Target& target, int64_t first) {
  double loss = 0.0;
  const int64_t whole = k / kLanes * kLanes;
  for (int64_t r = 0; r < rows; ++r, x += k, y += k) {
    Vec tops = load(x);
    for (int64_t j = kLanes; j < whole; j += kLanes) tops = max(load(x + j), tops);
    tops = max(load(x + k - kLanes), tops);  // overlaps: a maximum may see a value twice
    const float top = max_of(tops);
    const float picked = kLoss ? x[target.labels[first + r]] : 0.0f;
    Vec sums{};
    for (int64_t j = 0; j < whole; j += kLanes) {
      const Vec e = exp(load(x + j) - top);
      store(y + j, e);
      sums += e;
    }
    float sum = sum_of(sums);
    if (whole < k) {
      alignas(64) float rest[kLanes];
      store(rest, exp(load_part(x + whole, k - whole) - top));
      for (int64_t j = 0; j < k - whole; ++j) {
        y[whole + j] = rest[j];
        sum += rest[j];
      }
    }
    float scale = 1.0f / sum, factor = 0.0f;
    if constexpr (kLoss) {
      const int64_t label = target.labels[first + r];
      const double w = target.weight ? static_cast<double>(target.weight[label]) : 1.0;
      alignas(64) float each[kLanes];
      store(each, log(broadcast(sum)));
      loss += w * static_cast<double>(each[0] + (top - picked));
      factor = static_cast<float>(w / target.denominator);
      scale *= factor;
    }
    for (int64_t j = 0; j < k; ++j) y[j] *= scale;
    if constexpr (kLoss) y[target.labels[first + r]] -= factor;
  }
  return loss;
}

void softmax(int64_t m, int64_t k, const float* x, float* y) {
  for_chunks(m, chunk_rows(k), [=](int64_t begin, int64_t end) {
    const auto run = k <= kNarrow ? narrow_rows<false> : wide_rows<false>;
    run(end - begin, k, x + begin * k, y + begin * k, Target{}, begin);
  });
}

double* partial(int64_t values) {
  return static_cast<double*>(scratch(0, static_cast<size_t>(values) * sizeof(double)));
}

bool check_labels(int64_t m, int64_t k, const int64_t* labels, const float* weight, LabelCheck* found) {
  constexpr int64_t kRows = 1 << 14;
  const int64_t chunks = (m + kRows - 1) / kRows;
  double* part = partial(2 * chunks);
  if (!part) return false;
  for_chunks(m, kRows, [=](int64_t begin, int64_t end) {
    int64_t outside = -1;
    double sum = 0.0;
    for (int64_t i = begin; i < end; ++i) {
      if (static_cast<uint64_t>(labels[i]) >= static_cast<uint64_t>(k)) {
        outside = i;
        break;
      }
      if (weight) sum += static_cast<double>(weight[labels[i]]);
    }
    part[2 * (begin / kRows)] = static_cast<double>(outside);
    part[2 * (begin / kRows) + 1] = sum;
  });
  *found = {-1, 0.0};
  for (int64_t i = 0; i < chunks; ++i) {
    if (part[2 * i] >= 0 && found->outside < 0) found->outside = static_cast<int64_t>(part[2 * i]);
    found->weights += part[2 * i + 1];
  }
  if (!weight) found->weights = static_cast<double>(m);
  return true;
}

bool softmax_cross_entropy(int64_t m, int64_t k, const float* x, const int64_t* labels, const float* weight,
                           double denominator, double* loss, float* dx) {
  const int64_t rows = chunk_rows(k), chunks = (m + rows - 1) / rows;
  double* part = partial(chunks);
  if (!part) return false;
  const Target target{labels, weight, denominator};
  for_chunks(m, rows, [=](int64_t begin, int64_t end) {
    const auto run = k <= kNarrow ? narrow_rows<true> : wide_rows<true>;
    part[begin / rows] = run(end - begin, k, x + begin * k, dx + begin * k, target, begin);
  });
  double sum = 0.0;
  for (int64_t i = 0; i < chunks; ++i) sum += part[i];
  *loss = m ? sum / denominator : 0.0;
  return true;
}

/// Adds to sums[3][k] of some rows: p t, p, t.
void dice_sums(int64_t rows, int64_t k, const float* p, const int64_t* labels, double* sums) {
  for (int64_t j = 0; j < 3 * k; ++j) sums[j] = 0.0;
  for (int64_t r = 0; r < rows; ++r, p += k) {
    for (int64_t j = 0; j < k; ++j) sums[k + j] += static_cast<double>(p[j]);
    sums[labels[r]] += static_cast<double>(p[labels[r]]);
    sums[2 * k + labels[r]] += 1.0;
  }
}

/// Turns p into dx: dx_j = p_j (g_j - sum_i p_i g_i), where g_j = other[j] + (label == j ? own[j] : 0).
void dice_gradient(int64_t rows, int64_t k, const int64_t* labels, const double* own, const double* other, float* p) {
  for (int64_t r = 0; r < rows; ++r, p += k) {
    const int64_t label = labels[r];
    double mean = static_cast<double>(p[label]) * own[label];
    for (int64_t j = 0; j < k; ++j) mean += static_cast<double>(p[j]) * other[j];
    const double at_label = static_cast<double>(p[label]) * own[label];
    for (int64_t j = 0; j < k; ++j) p[j] = static_cast<float>(static_cast<double>(p[j]) * (other[j] - mean));
    p[label] += static_cast<float>(at_label);
  }
}

bool dice(int64_t n, int64_t m, int64_t k, const float* x, const int64_t* labels, double smooth, int64_t first,
          double denominator, double* loss, float* dx) {
  const int64_t rows = chunk_rows(k), chunks = (m + rows - 1) / rows;
  double* part = partial(n * (chunks * 3 * k + 2 * k));
  if (!part) return false;
  softmax(n * m, k, x, dx);
  const auto span = [=](int64_t i) { return (i + 1) * rows < m ? rows : m - i * rows; };
  for_chunks(n * chunks, 1, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t at = i / chunks * m + i % chunks * rows;
      dice_sums(span(i % chunks), k, dx + at * k, labels + at, part + i * 3 * k);
    }
  });
  double* slopes = part + n * chunks * 3 * k;  // [n][own, other][k]
  double sum = 0.0;
  for (int64_t i = 0; i < n; ++i) {
    double* total = part + i * chunks * 3 * k;
    for (int64_t c = 1; c < chunks; ++c)
      for (int64_t j = 0; j < 3 * k; ++j) total[j] += total[c * 3 * k + j];
    double score = 0.0;
    for (int64_t j = 0; j < k; ++j) {
      const double both = 2.0 * (chunks ? total[j] : 0.0) + smooth;
      const double size = (chunks ? total[k + j] + total[2 * k + j] : 0.0) + smooth;
      const double share = j < first ? 0.0 : 1.0 / (static_cast<double>(k - first) * denominator);
      score += j < first ? 0.0 : both / size;
      slopes[i * 2 * k + j] = -2.0 * share / size;
      slopes[i * 2 * k + k + j] = share * both / (size * size);
    }
    sum += 1.0 - score / static_cast<double>(k - first);
  }
  *loss = n ? sum / denominator : 0.0;
  for_chunks(n * chunks, 1, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t image = i / chunks, at = image * m + i % chunks * rows;
      const double* own = slopes + image * 2 * k;
      dice_gradient(span(i % chunks), k, labels + at, own, own + k, dx + at * k);
    }
  });
  return true;
}

}  // namespace

extern const LossOps loss;
const LossOps loss = {softmax, check_labels, softmax_cross_entropy, dice};

}  // namespace medmpi::MEDMPI_ISA
