// Recursive filters. Neighbouring lines are filtered together, a stripe of columns at a time; lines that are contiguous
// in memory are transposed into such a stripe. The state is double whatever the elements are: with wide filters the
// gain is tiny and rounding errors in the state would show. Scratch slots: 12 stripe, 13 results, 14 margin.
#include "ops/recursive.h"

#include "cpu/simd.h"
#include "cpu/threads.h"
#include "ops/scratch.h"

namespace medmpi::MEDMPI_ISA {
namespace {

constexpr int64_t kStripe = 32;  // columns that are filtered together: enough to hide the latency of the recursion

/// `count` columns of lines `x_pitch` and `y_pitch` elements apart.
template <typename T>
struct Stripe {
  const T* x;
  T* y;
  int64_t x_pitch, y_pitch, count;
};

/// What three successive elements of each column are.
struct State {
  double value[3][kStripe];
};

/// One step of the recursion: `now` holds the oldest elements and takes the new ones.
template <typename T>
MEDMPI_INLINE void step(const RecursiveFilter& r, const T* in, const double* last, const double* before, double* now,
                        T* out, int64_t count) {
  const double gain = r.gain, a0 = r.a[0], a1 = r.a[1], a2 = r.a[2];
  if (count == kStripe) {
#pragma GCC ivdep
    for (int64_t k = 0; k < kStripe; ++k) {
      const double w = gain * static_cast<double>(in[k]) + a2 * now[k] + a1 * before[k] + a0 * last[k];
      now[k] = w;
      out[k] = static_cast<T>(w);
    }
    return;
  }
  for (int64_t k = 0; k < count; ++k) {
    const double w = gain * static_cast<double>(in[k]) + a2 * now[k] + a1 * before[k] + a0 * last[k];
    now[k] = w;
    out[k] = static_cast<T>(w);
  }
}

template <typename T>
void filter_stripe(const AxisFilter& f, const RecursiveFilter& r, const Stripe<T>& s) {
  const int64_t margin = f.border == Border::nearest || f.border == Border::constant ? 0 : r.margin;
  T constant[kStripe];
  for (int64_t k = 0; k < kStripe; ++k) constant[k] = static_cast<T>(f.outside);
  auto* tail = static_cast<T*>(scratch(14, static_cast<size_t>((margin + 1) * kStripe) * sizeof(T)));
  const auto input = [&](int64_t i) {
    const int64_t from = f.source(i);
    return from < 0 ? constant : s.x + from * s.x_pitch;
  };
  const auto filtered = [&](int64_t i) {
    return i < 0 ? tail : i < f.n ? s.y + i * s.y_pitch : tail + (i - f.n) * kStripe;
  };
  State state;
  double (&v)[3][kStripe] = state.value;
  const T* start = input(-margin - 1);
  for (int64_t k = 0; k < s.count; ++k) v[0][k] = v[1][k] = v[2][k] = static_cast<double>(start[k]);
  int64_t turn = 0;  // v[turn] holds the oldest elements
  const int64_t end = f.n + margin;
  for (int64_t i = -margin; i < end; ++i, turn = turn == 2 ? 0 : turn + 1)
    step(r, input(i), v[(turn + 2) % 3], v[(turn + 1) % 3], v[turn], filtered(i), s.count);
  // the last element and the two behind it: what follows is constant (B. Triggs, M. Sdika, "Boundary conditions for
  // Young - van Vliet recursive filtering", IEEE Transactions on Signal Processing 54(6), 2006)
  const T* beyond = input(end);
  T* last = filtered(end - 1);
  for (int64_t k = 0; k < s.count; ++k) {
    const auto level = static_cast<double>(beyond[k]);
    const double w[3] = {v[(turn + 2) % 3][k] - level, v[(turn + 1) % 3][k] - level, v[turn][k] - level};
    double y[3];
    for (int m = 0; m < 3; ++m)
      y[m] = level + r.ending[3 * m] * w[0] + r.ending[3 * m + 1] * w[1] + r.ending[3 * m + 2] * w[2];
    last[k] = static_cast<T>(y[0]);
    v[2][k] = y[0], v[1][k] = y[1], v[0][k] = y[2];
  }
  turn = 0;
  for (int64_t i = end - 2; i >= 0; --i, turn = turn == 2 ? 0 : turn + 1) {
    T* w = filtered(i);
    step(r, w, v[(turn + 2) % 3], v[(turn + 1) % 3], v[turn], w, s.count);
  }
}

/// to[j * to_pitch + i] = from[i * from_pitch + j], in blocks whose lines stay in the first-level cache.
template <typename T>
inline void transpose(const T* from, int64_t from_pitch, int64_t rows, int64_t cols, T* to, int64_t to_pitch) {
  constexpr int64_t kBlock = 16;
  for (int64_t j0 = 0; j0 < cols; j0 += kBlock)
    for (int64_t i0 = 0; i0 < rows; i0 += kBlock) {
      const int64_t j1 = j0 + kBlock < cols ? j0 + kBlock : cols, i1 = i0 + kBlock < rows ? i0 + kBlock : rows;
      for (int64_t j = j0; j < j1; ++j)
        for (int64_t i = i0; i < i1; ++i) to[j * to_pitch + i] = from[i * from_pitch + j];
    }
}

/// Lines that are contiguous: `kStripe` of them at a time are transposed.
template <typename T>
void along(const AxisFilter& f, const RecursiveFilter& r, const T* x, T* y) {
  for_chunks(f.outer, kStripe, [=, &f, &r](int64_t begin, int64_t end) {
    const auto bytes = static_cast<size_t>(f.n * kStripe) * sizeof(T);
    auto* in = static_cast<T*>(scratch(12, bytes));
    auto* out = static_cast<T*>(scratch(13, bytes));
    transpose(x + begin * f.n, f.n, end - begin, f.n, in, kStripe);
    filter_stripe(f, r, Stripe<T>{in, out, kStripe, kStripe, end - begin});
    transpose(out, kStripe, f.n, end - begin, y + begin * f.n, f.n);
  });
}

/// Lines whose elements lie `inner` apart.
template <typename T>
void across(const AxisFilter& f, const RecursiveFilter& r, const T* x, T* y) {
  const int64_t stripes = (f.inner + kStripe - 1) / kStripe;
  for_chunks(f.outer * stripes, 1, [=, &f, &r](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const int64_t k = b % stripes * kStripe, at = b / stripes * f.n * f.inner + k;
      filter_stripe(f, r, Stripe<T>{x + at, y + at, f.inner, f.inner, f.inner - k < kStripe ? f.inner - k : kStripe});
    }
  });
}

template <typename T>
void filter_axis(const AxisFilter& f, const RecursiveFilter& r, const T* x, T* y) {
  if (f.inner == 1)
    along(f, r, x, y);
  else
    across(f, r, x, y);
}

}  // namespace

extern const RecursiveOps recursive;
const RecursiveOps recursive = {filter_axis<float>, filter_axis<double>};

}  // namespace medmpi::MEDMPI_ISA
