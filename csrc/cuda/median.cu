// Median filters, a result to a thread. Windows of 9, 25 and 27 values: the smallest and the largest of as many values
// as can still matter are dropped again and again, which leaves the median; all in registers. Other windows: bisection
// on the value by counting, from the caches. Values are compared as whole numbers of the same order.
#include "cuda/elements.cuh"
#include "ops/median.h"

namespace medmpi::cuda {
namespace {

__device__ __forceinline__ int key_of(uint8_t v) { return v; }
__device__ __forceinline__ int key_of(uint16_t v) { return v; }
__device__ __forceinline__ int key_of(float v) {
  const int bits = __float_as_int(v);
  return bits ^ ((bits >> 31) & 0x7fffffff);
}
template <typename T>
__device__ __forceinline__ T value_of(int key) {
  if constexpr (sizeof(T) == 4)
    return __int_as_float(key ^ ((key >> 31) & 0x7fffffff));
  else
    return static_cast<T>(key);
}

/// border_source where it has something to do; out of line, for it would be unrolled with the window.
__device__ __attribute__((noinline)) int64_t beyond(Border border, int64_t i, int64_t n) {
  return border_source(border, i, n);
}

/// A result's place, and the keys of its window.
template <typename T>
struct Window {
  const MedianShape& s;
  const T* x;  // of this outer index and channel
  int64_t z, y, column;

  /// Index is 32 bits wide where that suffices: it divides faster.
  template <typename Index>
  __device__ Window(const MedianShape& shape, const T* all, Index i) : s(shape) {
    const auto channels = static_cast<Index>(s.channels), columns = static_cast<Index>(s.width);
    const auto lines = static_cast<Index>(s.height), planes = static_cast<Index>(s.depth);
    const Index pixel = i / channels, line = pixel / columns, plane = line / lines, volume = plane / planes;
    column = static_cast<int64_t>(pixel - line * columns);
    y = static_cast<int64_t>(line - plane * lines);
    z = static_cast<int64_t>(plane - volume * planes);
    x = all + static_cast<int64_t>(volume) * s.depth * s.height * s.width * s.channels +
        static_cast<int64_t>(i - pixel * channels);
  }
  /// Where the values at these distances lie, as parts of an offset; -1 for the constant.
  __device__ __forceinline__ int64_t depth(int64_t d) const {
    return source(z + d, s.depth, s.height * s.width * s.channels);
  }
  __device__ __forceinline__ int64_t line(int64_t d) const { return source(y + d, s.height, s.width * s.channels); }
  __device__ __forceinline__ int64_t pixel(int64_t d) const { return source(column + d, s.width, s.channels); }
  __device__ __forceinline__ int64_t source(int64_t i, int64_t n, int64_t pitch) const {
    if (i < 0 || i >= n) i = beyond(s.border, i, n);
    return i < 0 ? -1 : i * pitch;
  }
  __device__ __forceinline__ int key(int64_t in_depth, int64_t in_line, int64_t in_pixel) const {
    const bool constant = in_depth < 0 || in_line < 0 || in_pixel < 0;
    return key_of(constant ? static_cast<T>(s.outside) : x[in_depth + in_line + in_pixel]);
  }
};

__device__ __forceinline__ void order(int& a, int& b) {
  const int low = min(a, b);
  b = max(a, b);
  a = low;
}

/// The smallest of v[0..Count-1] to v[0], the largest to v[Count - 1].
template <int Count>
__device__ __forceinline__ void extremes(int* v) {
#pragma unroll
  for (int i = 0; i < Count / 2; ++i) order(v[i], v[Count - 1 - i]);
#pragma unroll
  for (int i = 1; i < (Count + 1) / 2; ++i) order(v[0], v[i]);
#pragma unroll
  for (int i = Count / 2; i < Count - 1; ++i) order(v[i], v[Count - 1]);
}

/// `v` holds Kept values, of which the extremes cannot be the median; each that goes makes room for the next one.
template <int Kept, int Total>
__device__ __forceinline__ int median_of(int* v, const int* rest) {
  if constexpr (Kept <= 2) {
    return v[0];
  } else {
    extremes<Kept>(v);
    // drop both ends; the next value takes the place of the first
    if constexpr (Total > 0) {
      v[0] = rest[0];
      return median_of<Kept - 1, Total - 1>(v, rest + 1);
    } else {
      return median_of<Kept - 2, 0>(v + 1, rest);
    }
  }
}

template <typename T, int RZ, int R, typename Index>
__global__ void __launch_bounds__(kThreads) median_small(int64_t count, MedianShape s, const T* x, T* y) {
  constexpr int kTotal = (2 * RZ + 1) * (2 * R + 1) * (2 * R + 1), kKept = kTotal / 2 + 2;
  for (int64_t i = first_of_grid(); i < count; i += size_of_grid()) {
    const Window<T> w(s, x, static_cast<Index>(i));
    int64_t planes[2 * RZ + 1], lines[2 * R + 1], pixels[2 * R + 1];
#pragma unroll
    for (int d = -RZ; d <= RZ; ++d) planes[d + RZ] = w.depth(d);
#pragma unroll
    for (int d = -R; d <= R; ++d) {
      lines[d + R] = w.line(d);
      pixels[d + R] = w.pixel(d);
    }
    int v[kTotal];
#pragma unroll
    for (int a = 0; a <= 2 * RZ; ++a)
#pragma unroll
      for (int b = 0; b <= 2 * R; ++b)
#pragma unroll
        for (int c = 0; c <= 2 * R; ++c)
          v[(a * (2 * R + 1) + b) * (2 * R + 1) + c] = w.key(planes[a], lines[b], pixels[c]);
    y[i] = value_of<T>(median_of<kKept, kTotal - kKept>(v, v + kKept));
  }
}

/// The number of window values above a guess tells which half holds the median.
template <typename T, typename Index>
__global__ void __launch_bounds__(kThreads) median_by_bisection(int64_t count, MedianShape s, const T* x, T* y) {
  const int half = static_cast<int>(s.window() / 2);
  for (int64_t i = first_of_grid(); i < count; i += size_of_grid()) {
    const Window<T> w(s, x, static_cast<Index>(i));
    const auto for_window = [&](const auto& body) {
      for (int64_t dz = -s.rz; dz <= s.rz; ++dz) {
        const int64_t plane = w.depth(dz);
        for (int64_t dy = -s.ry; dy <= s.ry; ++dy) {
          const int64_t line = w.line(dy);
          for (int64_t dx = -s.rx; dx <= s.rx; ++dx) body(w.key(plane, line, w.pixel(dx)));
        }
      }
    };
    int low = w.key(w.depth(0), w.line(0), w.pixel(0)), high = low;
    for_window([&](int key) {
      low = min(low, key);
      high = max(high, key);
    });
    while (low < high) {
      const int guess = (low & high) + ((low ^ high) >> 1);
      int above = 0;
      for_window([&](int key) { above += key > guess; });
      if (above > half)
        low = guess + 1;
      else
        high = guess;
    }
    y[i] = value_of<T>(low);
  }
}

template <typename T, typename Index>
void median_as(const MedianShape& s, int64_t count, const T* x, T* y) {
  const bool square = s.ry == s.rx;
  const auto kernel = s.rz == 0 && square && s.ry == 1   ? median_small<T, 0, 1, Index>
                      : s.rz == 0 && square && s.ry == 2 ? median_small<T, 0, 2, Index>
                      : s.rz == 1 && square && s.ry == 1 ? median_small<T, 1, 1, Index>
                                                         : median_by_bisection<T, Index>;
  launch(kernel, blocks_for(count, kThreads), kThreads, 0, count, s, x, y);
}

template <typename T>
void median(const MedianShape& s, const T* x, T* y) {
  const int64_t count = s.outer * s.depth * s.height * s.width * s.channels;
  if (count <= 0) return;
  if (count < int64_t{1} << 31)
    median_as<T, uint32_t>(s, count, x, y);
  else
    median_as<T, uint64_t>(s, count, x, y);
}

}  // namespace

extern const MedianOps median_filter;
const MedianOps median_filter = {median<uint8_t>, median<uint16_t>, median<float>};

}  // namespace medmpi::cuda
