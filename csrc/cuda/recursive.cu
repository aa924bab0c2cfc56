// Recursive filters: a lane runs along a line. Lines that are contiguous are read and written through a tile of shared
// memory, 32 elements of 32 lines at a time. The state is double whatever the elements are: with wide filters the gain
// is tiny and rounding errors in the state would show.
//
// Scratch: slot 0, what lies behind the ends of the lines.
#include "cuda/block.cuh"
#include "ops/recursive.h"

namespace medmpi::cuda {
namespace {

constexpr int kLines = 32, kSteps = 32;

/// One line of each lane: element i lies at base + i * pitch.
struct Lines {
  AxisFilter f;
  RecursiveFilter r;
  int64_t margin, pitch, count;  // count: lines in all
};

/// Elements first, first + 1, ... first + kSteps - 1 of a warp's lines between memory and a tile; those outside
/// [begin, end) are left alone.
template <typename T, bool kStore>
__device__ __forceinline__ void exchange(const Lines& l, int64_t line0, int64_t first, int64_t begin, int64_t end, T* p,
                                         T (&tile)[kLines][kSteps + 1]) {
  const auto lane = static_cast<int>(threadIdx.x);
  __syncwarp();
  for (int k = 0; k < kLines && line0 + k < l.count; ++k) {
    const int64_t i = first + lane;
    if (i < begin || i >= end) continue;
    T* at = p + (line0 + k) * l.f.n + i;
    if constexpr (kStore)
      *at = tile[k][lane];
    else
      tile[k][lane] = *at;
  }
  __syncwarp();
}

/// The recursion: w = gain x + a0 w[-1] + a1 w[-2] + a2 w[-3], with the three last values in `v`, the youngest first.
__device__ __forceinline__ double step(const RecursiveFilter& r, double in, double (&v)[3]) {
  const double w = r.gain * in + r.a[2] * v[2] + r.a[1] * v[1] + r.a[0] * v[0];
  v[2] = v[1];
  v[1] = v[0];
  v[0] = w;
  return w;
}

/// kAlong: lines are contiguous. One warp a block.
template <typename T, bool kAlong>
__global__ void __launch_bounds__(kLines) filter_lines(Lines l, const T* x, T* y, T* tails) {
  SHARED_ARRAY(T, tile, [kLines][kSteps + 1]);
  const int64_t line0 = int64_t{blockIdx.x} * kLines, line = line0 + threadIdx.x, n = l.f.n;
  const bool mine = line < l.count;
  const int64_t base = kAlong ? line * n : line / l.f.inner * n * l.f.inner + line % l.f.inner;
  const auto constant = static_cast<T>(l.f.outside);
  const auto input = [&](int64_t i) {
    const int64_t from = l.f.source(i);
    return static_cast<double>(from < 0 || !mine ? constant : x[base + from * l.pitch]);
  };
  T* tail = tails + line * l.margin;  // w behind the line's end

  double v[3];
  v[0] = v[1] = v[2] = input(-l.margin - 1);
  for (int64_t i = -l.margin; i < 0; ++i) step(l.r, input(i), v);
  for (int64_t first = 0; first < n; first += kSteps) {
    if constexpr (kAlong) {
      exchange<T, false>(l, line0, first, 0, n, const_cast<T*>(x), tile);
      for (int k = 0; k < kSteps && first + k < n; ++k)
        if (mine) tile[threadIdx.x][k] = static_cast<T>(step(l.r, static_cast<double>(tile[threadIdx.x][k]), v));
      exchange<T, true>(l, line0, first, 0, n, y, tile);
    } else if (mine) {
      T part[8];  // loads under way together: the recursion would wait for each
      for (int64_t at = first; at < first + kSteps && at < n; at += 8) {
#pragma unroll
        for (int k = 0; k < 8; ++k)
          if (at + k < n) part[k] = x[base + (at + k) * l.pitch];
#pragma unroll
        for (int k = 0; k < 8; ++k)
          if (at + k < n) y[base + (at + k) * l.pitch] = static_cast<T>(step(l.r, static_cast<double>(part[k]), v));
      }
    }
  }
  for (int64_t i = 0; i < l.margin; ++i) {
    const auto w = static_cast<T>(step(l.r, input(n + i), v));
    if (mine) tail[i] = w;
  }

  // the last element and the two behind it: what follows is constant (B. Triggs, M. Sdika, "Boundary conditions for
  // Young - van Vliet recursive filtering", IEEE Transactions on Signal Processing 54(6), 2006)
  const double level = input(n + l.margin);
  const double w[3] = {v[0] - level, v[1] - level, v[2] - level};
  double last[3];
#pragma unroll
  for (int m = 0; m < 3; ++m)
    last[m] = level + l.r.ending[3 * m] * w[0] + l.r.ending[3 * m + 1] * w[1] + l.r.ending[3 * m + 2] * w[2];
  v[0] = last[0], v[1] = last[1], v[2] = last[2];
  for (int64_t i = l.margin - 2; i >= 0; --i) step(l.r, mine ? static_cast<double>(tail[i]) : 0.0, v);
  int64_t end = n;  // elements from here on are done
  if (l.margin == 0) {
    end = n - 1;
    if (mine) y[base + end * l.pitch] = static_cast<T>(last[0]);
  }
  for (int64_t first = (n - 1) / kSteps * kSteps; first >= 0; first -= kSteps) {
    if constexpr (kAlong) {
      exchange<T, false>(l, line0, first, 0, end, y, tile);
      for (int k = kSteps - 1; k >= 0; --k)
        if (mine && first + k < end)
          tile[threadIdx.x][k] = static_cast<T>(step(l.r, static_cast<double>(tile[threadIdx.x][k]), v));
      exchange<T, true>(l, line0, first, 0, end, y, tile);
    } else if (mine) {
      T part[8];
      for (int64_t at = first + kSteps - 8; at >= first; at -= 8) {
#pragma unroll
        for (int k = 0; k < 8; ++k)
          if (at + k < end) part[k] = y[base + (at + k) * l.pitch];
#pragma unroll
        for (int k = 7; k >= 0; --k)
          if (at + k < end) y[base + (at + k) * l.pitch] = static_cast<T>(step(l.r, static_cast<double>(part[k]), v));
      }
    }
  }
}

template <typename T>
void filter_axis(const AxisFilter& f, const RecursiveFilter& r, const T* x, T* y) {
  Lines l{f, r, 0, f.inner, f.outer * f.inner};
  if (l.count <= 0 || f.n <= 0) return;
  l.margin = f.border == Border::nearest || f.border == Border::constant ? 0 : r.margin;
  T* tails = nullptr;
  const int64_t blocks = (l.count + kLines - 1) / kLines;
  if (l.margin) tails = static_cast<T*>(device_scratch(0, static_cast<size_t>(blocks * kLines * l.margin) * sizeof(T)));
  launch(f.inner == 1 ? filter_lines<T, true> : filter_lines<T, false>, static_cast<unsigned>(blocks), kLines, 0, l, x,
         y, tails);
}

}  // namespace

extern const RecursiveOps recursive;
const RecursiveOps recursive = {filter_axis<float>, filter_axis<double>};

}  // namespace medmpi::cuda
