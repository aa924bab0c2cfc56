// Batch normalisation. The rows are cut into chunks of about 128 KB, by the shape alone; chunks are merged in order in
// float64 (Chan, Golub, LeVeque 1979). Several rows are seen as one wide row whose length suits the vectors, whatever
// the number of channels. The mean's rounding to float32 is put right in the additive term, so that a mean that is
// large against the deviation costs no digits. The second pass over memory runs backwards: it starts with what the last
// level cache still holds.
//
// Scratch: slot 0 of the calling thread, the chunks' partial results.
#include "ops/batchnorm.h"

#include <type_traits>

#include "cpu/moments.h"
#include "cpu/simd.h"
#include "cpu/sizes.h"
#include "cpu/threads.h"
#include "ops/scratch.h"

namespace medmpi::MEDMPI_ISA {
namespace {

/// Calls body(first row, rows, first channel, channels, copies) for every block of the chunk: the wide rows, in blocks
/// of at most kWideRow channels, then the rows that do not fill a wide one.
template <typename Body>
MEDMPI_INLINE void for_blocks(const RowCut& cut, int64_t chunk, const Body& body) {
  const int64_t first = chunk * cut.rows;
  const int64_t rows = first + cut.rows < cut.m ? cut.rows : cut.m - first;
  for (int64_t c0 = 0; c0 < cut.c; c0 += kWideRow) {
    const int64_t channels = cut.c - c0 < kWideRow ? cut.c - c0 : kWideRow;
    body(first, rows, c0, channels);
  }
}

/// body(i) for the chunks, each thread from its last to its first.
template <typename Body>
void backwards(int64_t chunks, const Body& body) {
  if (chunks <= 1) {
    if (chunks) body(int64_t{0});
    return;
  }
#pragma omp parallel
  {
    const int64_t threads = omp_get_num_threads(), t = omp_get_thread_num();
    for (int64_t i = (t + 1) * chunks / threads - 1; i >= t * chunks / threads; --i) body(i);
  }
}

template <typename Body>
void forwards(int64_t chunks, const Body& body) {
  if (chunks <= 1) {
    if (chunks) body(int64_t{0});
    return;
  }
#pragma omp parallel
  {
    const int64_t threads = omp_get_num_threads(), t = omp_get_thread_num();
    for (int64_t i = t * chunks / threads; i < (t + 1) * chunks / threads; ++i) body(i);
  }
}

constexpr int64_t kAhead = 8;  // wide rows

/// Asks for `count` floats that are read or, with `Write`, written soon.
template <int Write>
MEDMPI_INLINE void ask(const float* p, int64_t count) {
  for (int64_t i = 0; i < count; i += 16) __builtin_prefetch(p + i, Write, 2);
}

/// Adds `copies` sums per channel into the first.
MEDMPI_INLINE void fold(const float* wide, int64_t c, int64_t copies, double* sum) {
  for (int64_t j = 0; j < c; ++j) sum[j] = static_cast<double>(wide[j]);
  for (int64_t k = 1; k < copies; ++k)
    for (int64_t j = 0; j < c; ++j) sum[j] += static_cast<double>(wide[k * c + j]);
}

MEDMPI_INLINE void repeat(float* wide, int64_t c, int64_t copies) {
  for (int64_t j = c; j < c * copies; ++j) wide[j] = wide[j - c];
}

bool statistics(int64_t m, int64_t c, const float* x, double* mean, double* m2) {
  for (int64_t j = 0; j < c; ++j) mean[j] = m2[j] = 0.0;
  const RowCut cut = cut_rows(m, c);
  auto* part = static_cast<double*>(scratch(0, static_cast<size_t>(cut.chunks * c * 2) * sizeof(double)));
  if (!part) return false;
  forwards(cut.chunks, [=](int64_t i) {
    for_blocks(cut, i, [=](int64_t first, int64_t rows, int64_t c0, int64_t channels) {
      double* mine = part + i * c * 2 + c0;
      chunk_statistics(cut, rows, channels, x + first * c + c0, mine, mine + c);
    });
  });
  for (int64_t i = 0; i < cut.chunks; ++i) {
    const int64_t before = i * cut.rows, rows = i + 1 < cut.chunks ? cut.rows : m - before;
    merge_moments(before, rows, c, part + i * c * 2, mean, m2);
  }
  return true;
}

/// Calls body(x offset, values) for the wide rows of a block and then for the rows left over.
template <typename Body>
MEDMPI_INLINE void for_rows(const RowCut& cut, int64_t first, int64_t rows, int64_t c0, int64_t c, const Body& body) {
  const int64_t k = cut.copies, stride = cut.c * k, begin = first * cut.c + c0, wide = rows / k;
  for (int64_t i = 0; i < wide; ++i) body(begin + i * stride, c * k);
  for (int64_t i = 0; i < rows % k; ++i) body(begin + wide * stride + i * cut.c, c);
}

/// y = (x - shift) scale + add, per channel of a wide row.
struct Affine {
  alignas(64) float shift[kWideRow], scale[kWideRow], add[kWideRow];

  MEDMPI_INLINE void set(const RowCut& cut, int64_t c0, int64_t c, const float* gamma, const float* beta,
                         const double* mean, const double* rstd) {
    for (int64_t j = 0; j < c; ++j) {
      const double a = rstd[c0 + j] * static_cast<double>(gamma[c0 + j]);
      shift[j] = static_cast<float>(mean[c0 + j]);
      scale[j] = static_cast<float>(a);
      add[j] =
          static_cast<float>(static_cast<double>(beta[c0 + j]) + (static_cast<double>(shift[j]) - mean[c0 + j]) * a);
    }
    repeat(shift, c, cut.copies);
    repeat(scale, c, cut.copies);
    repeat(add, c, cut.copies);
  }
};

template <bool kResidual, bool kRelu, bool kStream>
void apply_as(const RowCut& cut, const float* x, const float* gamma, const float* beta, const double* mean,
              const double* rstd, const float* residual, float* y) {
  backwards(cut.chunks, [=](int64_t i) {
    for_blocks(cut, i, [=](int64_t first, int64_t rows, int64_t c0, int64_t c) {
      alignas(64) [[maybe_unused]] float row[kWideRow];
      Affine f;
      f.set(cut, c0, c, gamma, beta, mean, rstd);
      for_rows(cut, first, rows, c0, c, [&](int64_t at, int64_t w) {
        float* const to = kStream ? row : y + at;
#pragma GCC ivdep
        for (int64_t j = 0; j < w; ++j) {
          float v = (x[at + j] - f.shift[j]) * f.scale[j] + f.add[j];
          if constexpr (kResidual) v += residual[at + j];
          if constexpr (kRelu) v = v < 0.0f ? 0.0f : v;
          to[j] = v;
        }
        if constexpr (kStream) stream(y + at, row, w);
      });
    });
    if constexpr (kStream) stream_end();
  });
}

void apply(int64_t m, int64_t c, const float* x, const float* gamma, const float* beta, const double* mean,
           const double* rstd, const float* residual, bool relu, float* y) {
  const RowCut cut = cut_rows(m, c);
  const bool streams = is_far(m * c) && y != x && y != residual;
  const auto pick = [=](auto stream) {
    constexpr bool kStream = decltype(stream)::value;
    return residual ? (relu ? apply_as<true, true, kStream> : apply_as<true, false, kStream>)
                    : (relu ? apply_as<false, true, kStream> : apply_as<false, false, kStream>);
  };
  const auto run = streams ? pick(std::true_type{}) : pick(std::false_type{});
  run(cut, x, gamma, beta, mean, rstd, residual, y);
}

/// How a ReLU masks the gradient.
enum class Relu { kNone, kSaved, kAgain };

/// What passes of one gradient. `whole` is read in any case, so that the choice is a mask and not a branch.
template <Relu kMask>
MEDMPI_INLINE float masked(float whole, float x, float y, float shift, float scale, float add) {
  if constexpr (kMask == Relu::kSaved) return y > 0.0f ? whole : 0.0f;
  if constexpr (kMask == Relu::kAgain) return (x - shift) * scale + add > 0.0f ? whole : 0.0f;
  return whole;
}

template <Relu kMask>
void reduce_rows(int64_t rows, int64_t w, int64_t stride, bool far, const float* dy, const float* x, const float* y,
                 const Affine& f, float* __restrict s, float* __restrict q) {
  constexpr int64_t kSaved = kMask == Relu::kSaved;
  const auto line = [=, &f](int64_t i, int64_t j, float& centred) {
    const int64_t at = i * stride + j;
    centred = x[at] - f.shift[j];
    return masked<kMask>(dy[at], x[at], kSaved ? y[at] : 0.0f, f.shift[j], f.scale[j], f.add[j]);
  };
  int64_t i = 0;
  for (; i + 4 <= rows; i += 4) {  // sums of four: fewer visits to s and q
    if (far) {
      ask<0>(dy + (i + kAhead) * stride, 4 * w);
      ask<0>(x + (i + kAhead) * stride, 4 * w);
    }
    for (int64_t j = 0; j < w; ++j) {
      float xa, xb, xc, xd;
      const float a = line(i, j, xa), b = line(i + 1, j, xb), c = line(i + 2, j, xc), d = line(i + 3, j, xd);
      s[j] += (a + b) + (c + d);
      q[j] += (a * xa + b * xb) + (c * xc + d * xd);
    }
  }
  for (; i < rows; ++i)
    for (int64_t j = 0; j < w; ++j) {
      float xa;
      const float a = line(i, j, xa);
      s[j] += a;
      q[j] += a * xa;
    }
}

template <Relu kMask>
void reduce_as(const RowCut& cut, const float* dy, const float* x, const float* y, const float* gamma,
               const float* beta, const double* mean, const double* rstd, double* part) {
  const bool far = is_far(cut.m * cut.c);
  forwards(cut.chunks, [=](int64_t i) {
    for_blocks(cut, i, [=](int64_t first, int64_t rows, int64_t c0, int64_t c) {
      alignas(64) float s[kWideRow], q[kWideRow];
      Affine f;
      const int64_t k = cut.copies, stride = cut.c * k, at = first * cut.c + c0, rest = at + rows / k * stride;
      if constexpr (kMask == Relu::kAgain) {
        f.set(cut, c0, c, gamma, beta, mean, rstd);
      } else {
        for (int64_t j = 0; j < c; ++j) f.shift[j] = static_cast<float>(mean[c0 + j]);
        repeat(f.shift, c, k);
      }
      for (int64_t j = 0; j < c * k; ++j) s[j] = q[j] = 0.0f;
      constexpr int64_t kSaved = kMask == Relu::kSaved;
      reduce_rows<kMask>(rows / k, c * k, stride, far, dy + at, x + at, kSaved ? y + at : y, f, s, q);
      reduce_rows<kMask>(rows % k, c, cut.c, false, dy + rest, x + rest, kSaved ? y + rest : y, f, s, q);
      double* mine = part + i * cut.c * 2 + c0;
      fold(s, c, k, mine);
      fold(q, c, k, mine + cut.c);
    });
  });
}

bool backward_reduce(int64_t m, int64_t c, const float* dy, const float* x, const float* y, const float* gamma,
                     const float* beta, const double* mean, const double* rstd, double* sum_dy, double* sum_dy_xhat) {
  for (int64_t j = 0; j < c; ++j) sum_dy[j] = sum_dy_xhat[j] = 0.0;
  const RowCut cut = cut_rows(m, c);
  auto* part = static_cast<double*>(scratch(0, static_cast<size_t>(cut.chunks * c * 2) * sizeof(double)));
  if (!part) return false;
  const auto run = y ? reduce_as<Relu::kSaved> : beta ? reduce_as<Relu::kAgain> : reduce_as<Relu::kNone>;
  run(cut, dy, x, y, gamma, beta, mean, rstd, part);
  for (int64_t i = 0; i < cut.chunks; ++i)
    for (int64_t j = 0; j < c; ++j) {
      sum_dy[j] += part[i * c * 2 + j];
      sum_dy_xhat[j] += part[i * c * 2 + c + j];
    }
  for (int64_t j = 0; j < c; ++j) {
    const double rounding = static_cast<double>(static_cast<float>(mean[j])) - mean[j];
    sum_dy_xhat[j] = (sum_dy_xhat[j] + sum_dy[j] * rounding) * rstd[j];
  }
  return true;
}

struct Sums {
  const float *gamma, *beta;
  const double *mean, *rstd, *sum_dy, *sum_dy_xhat;
  double count;
};

template <Relu kMask, bool kResidual>
void backward_apply_as(const RowCut& cut, const float* dy, const float* x, const float* y, const Sums& sums,
                       float* dresidual, float* dx) {
  const bool far = is_far(cut.m * cut.c);
  backwards(cut.chunks, [=](int64_t i) {
    for_blocks(cut, i, [=](int64_t first, int64_t rows, int64_t c0, int64_t c) {
      // dx = scale dy + slope (x - shift) + add
      Affine f;
      alignas(64) float scale[kWideRow], slope[kWideRow], add[kWideRow];
      for (int64_t j = 0; j < c; ++j) {
        const int64_t k = c0 + j;
        const double a = static_cast<double>(sums.gamma[k]) * sums.rstd[k];
        const double b = -a * sums.rstd[k] * sums.sum_dy_xhat[k] / sums.count;
        f.shift[j] = static_cast<float>(sums.mean[k]);
        scale[j] = static_cast<float>(a);
        slope[j] = static_cast<float>(b);
        add[j] =
            static_cast<float>(b * (static_cast<double>(f.shift[j]) - sums.mean[k]) - a * sums.sum_dy[k] / sums.count);
      }
      if constexpr (kMask == Relu::kAgain)
        f.set(cut, c0, c, sums.gamma, sums.beta, sums.mean, sums.rstd);
      else
        repeat(f.shift, c, cut.copies);
      repeat(scale, c, cut.copies);
      repeat(slope, c, cut.copies);
      repeat(add, c, cut.copies);
      for_rows(cut, first, rows, c0, c, [&](int64_t at, int64_t w) {
        if (far) {
          ask<0>(dy + at + kAhead * w, w);
          ask<0>(x + at + kAhead * w, w);
          ask<1>(dx + at + kAhead * w, w);
        }
#pragma GCC ivdep
        for (int64_t j = 0; j < w; ++j) {
          const float saved = kMask == Relu::kSaved ? y[at + j] : 0.0f;
          const float g = masked<kMask>(dy[at + j], x[at + j], saved, f.shift[j], f.scale[j], f.add[j]);
          if constexpr (kResidual) dresidual[at + j] = g;
          dx[at + j] = scale[j] * g + (slope[j] * (x[at + j] - f.shift[j]) + add[j]);
        }
      });
    });
  });
}

void backward_apply(int64_t m, int64_t c, const float* dy, const float* x, const float* y, const float* gamma,
                    const float* beta, const double* mean, const double* rstd, const double* sum_dy,
                    const double* sum_dy_xhat, double count, float* dresidual, float* dx) {
  const RowCut cut = cut_rows(m, c);
  const Sums sums{gamma, beta, mean, rstd, sum_dy, sum_dy_xhat, count};
  const auto run = y      ? (dresidual ? backward_apply_as<Relu::kSaved, true> : backward_apply_as<Relu::kSaved, false>)
                   : beta ? (dresidual ? backward_apply_as<Relu::kAgain, true> : backward_apply_as<Relu::kAgain, false>)
                          : (dresidual ? backward_apply_as<Relu::kNone, true> : backward_apply_as<Relu::kNone, false>);
  run(cut, dy, x, y, sums, dresidual, dx);
}

void deviation(int64_t c, double count, double eps, const double* m2, double* rstd) {
  for (int64_t j = 0; j < c; ++j) rstd[j] = 1.0 / __builtin_sqrt((count > 0 ? m2[j] / count : 0.0) + eps);
}

void from_running(int64_t c, double eps, const float* running_mean, const float* running_var, double* mean,
                  double* rstd) {
  for (int64_t j = 0; j < c; ++j) {
    mean[j] = running_mean[j];
    rstd[j] = 1.0 / __builtin_sqrt(running_var[j] + eps);
  }
}

void track(int64_t c, double count, double rate, const double* mean, const double* m2, float* running_mean,
           float* running_var) {
  const auto move = [rate](double value, float& running) { running += static_cast<float>(rate * (value - running)); };
  for (int64_t j = 0; j < c; ++j) move(mean[j], running_mean[j]);
  for (int64_t j = 0; j < c; ++j) move(m2[j] / (count - 1), running_var[j]);
}

void add_sums(int64_t c, const double* sums, float* y) {
  for (int64_t j = 0; j < c; ++j) y[j] += static_cast<float>(sums[j]);
}

}  // namespace

extern const BatchNormOps batchnorm;
const BatchNormOps batchnorm = {statistics, apply, backward_reduce, backward_apply,
                                deviation,  track, add_sums,        from_running};

}  // namespace medmpi::MEDMPI_ISA
