// Filtering along an axis. A block copies a tile and what surrounds it along the axis to shared memory, borders
// resolved; a thread makes several neighbouring results of one column, so that each value it reads serves many. The
// two-dimensional form filters rows from one tile into a second and columns from there: memory is read and written
// once. Wide filters, whose tile shared memory cannot hold, read memory directly. Sums in float64 run as in
// scipy.ndimage, the centre, then pairs from the far end inwards, never contracted: every result has the same bits.
//
// Scratch: slot 0, the rows' results where the two axes are filtered one after the other.
#include "cuda/block.cuh"
#include "cuda/elements.cuh"
#include "ops/filter.h"

namespace medmpi::cuda {
namespace {

constexpr int kResults = 8;                 // of a thread, along the axis
constexpr int64_t kSharedBytes = 96 << 10;  // of a block at most: two to a multiprocessor

/// One result from line(t), the value at offset t from the centre.
template <typename Line>
__device__ __forceinline__ double weigh(Symmetry symmetry, int radius, const double* taps, const Line& line) {
  double sum = __dmul_rn(line(0), taps[radius]);
  if (symmetry == Symmetry::even) {
    for (int t = -radius; t < 0; ++t) sum = __dadd_rn(sum, __dmul_rn(__dadd_rn(line(t), line(-t)), taps[radius + t]));
  } else if (symmetry == Symmetry::odd) {
    for (int t = -radius; t < 0; ++t) sum = __dadd_rn(sum, __dmul_rn(__dsub_rn(line(t), line(-t)), taps[radius + t]));
  } else {
    sum = __dmul_rn(line(-radius), taps[0]);
    for (int t = -radius + 1; t <= radius; ++t) sum = __dadd_rn(sum, __dmul_rn(line(t), taps[radius + t]));
  }
  return sum;
}
template <typename Line>
__device__ __forceinline__ float weigh(Symmetry symmetry, int radius, const float* taps, const Line& line) {
  float sum = line(0) * taps[radius];
  if (symmetry == Symmetry::even) {
    for (int t = -radius; t < 0; ++t) sum += (line(t) + line(-t)) * taps[radius + t];
  } else if (symmetry == Symmetry::odd) {
    for (int t = -radius; t < 0; ++t) sum += (line(t) - line(-t)) * taps[radius + t];
  } else {
    sum = line(-radius) * taps[0];
    for (int t = -radius + 1; t <= radius; ++t) sum += line(t) * taps[radius + t];
  }
  return sum;
}

/// kResults neighbouring results from values `pitch` apart, the first at `x` for result 0 at offset -radius: a window
/// of kResults values slides along.
__device__ __forceinline__ void weigh_many(Symmetry, int radius, const float* taps, const float* x, int pitch,
                                           float (&sum)[kResults]) {
  float window[kResults];
#pragma unroll
  for (int i = 0; i < kResults - 1; ++i) window[i + 1] = x[i * pitch];
#pragma unroll
  for (int i = 0; i < kResults; ++i) sum[i] = 0.0f;
  x += (kResults - 1) * pitch;
  for (int t = 0; t <= 2 * radius; ++t, x += pitch) {
#pragma unroll
    for (int i = 0; i < kResults - 1; ++i) window[i] = window[i + 1];
    window[kResults - 1] = *x;
    const float tap = taps[t];
#pragma unroll
    for (int i = 0; i < kResults; ++i) sum[i] += window[i] * tap;
  }
}
__device__ __forceinline__ void weigh_many(Symmetry symmetry, int radius, const double* taps, const double* x,
                                           int pitch, double (&sum)[kResults]) {
  for (int i = 0; i < kResults; ++i)
    sum[i] = weigh(symmetry, radius, taps, [=](int t) { return x[(i + radius + t) * pitch]; });
}

// --- one axis -------------------------------------------------------------------------------------------------------

/// A tile of `length` results along the axis (a multiple of kResults) by `width` columns.
struct AxisTile {
  int length, width, shift;  // width is 2^shift, or shift is negative
  int64_t along, across;     // tiles

  __device__ __forceinline__ int row_of(int e) const { return shift >= 0 ? e >> shift : e / width; }
};

/// Blocks of one tile each.
template <typename T>
__global__ void __launch_bounds__(kThreads) filter_tile(AxisFilter f, AxisTile g, const T* taps, const T* x, T* y) {
  SHARED_BYTES(bytes);
  auto* tap = reinterpret_cast<T*>(bytes);
  const auto radius = static_cast<int>(f.radius);
  T* tile = tap + 2 * radius + 1;
  const int rows = g.length + 2 * radius;
  const int64_t b = blockIdx.x, k0 = b % g.across * g.width, i0 = b / g.across % g.along * g.length;
  const int64_t plane = b / g.across / g.along * f.n * f.inner;
  for (int t = static_cast<int>(threadIdx.x); t <= 2 * radius; t += kThreads) tap[t] = taps[t];
  for (int e = static_cast<int>(threadIdx.x); e < rows * g.width; e += kThreads) {
    const int row = g.row_of(e);
    const int64_t k = k0 + e - row * g.width, i = i0 + row - radius;
    T value = static_cast<T>(f.outside);
    if (k < f.inner && i < f.n + radius) {
      const int64_t from = f.source(i);
      if (from >= 0) value = x[plane + from * f.inner + k];
    }
    tile[e] = value;
  }
  __syncthreads();
  // neighbouring threads take neighbouring columns, or runs of an odd number of results: no bank is asked twice
  for (int e = static_cast<int>(threadIdx.x); e < g.length / kResults * g.width; e += kThreads) {
    const int run = g.row_of(e), column = e - run * g.width;
    T sum[kResults];
    weigh_many(f.symmetry, radius, tap, tile + run * kResults * g.width + column, g.width, sum);
#pragma unroll
    for (int r = 0; r < kResults; ++r) {
      const int64_t i = i0 + run * kResults + r, k = k0 + column;
      if (i < f.n && k < f.inner) y[plane + i * f.inner + k] = sum[r];
    }
  }
}

/// Any radius: a thread makes one result from memory.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    filter_direct(int64_t count, AxisFilter f, const T* taps, const T* x, T* y) {
  const auto radius = static_cast<int>(f.radius);
  for (int64_t at = first_of_grid(); at < count; at += size_of_grid()) {
    const int64_t i = at / f.inner % f.n, line = at - i * f.inner;
    y[at] = weigh(f.symmetry, radius, taps, [&](int t) {
      const int64_t from = f.source(i + t);
      return from < 0 ? static_cast<T>(f.outside) : x[line + from * f.inner];
    });
  }
}

template <typename T>
size_t axis_bytes(const AxisFilter& f, const AxisTile& g) {
  return static_cast<size_t>(2 * f.radius + 1 + (g.length + 2 * f.radius) * g.width) * sizeof(T);
}

/// The tile for a filter; length 0 where none fits.
template <typename T>
AxisTile tile_for(const AxisFilter& f) {
  AxisTile g{};
  g.width = static_cast<int>(std::min<int64_t>(f.inner, 32));
  for (g.shift = 0; 1 << g.shift < g.width;) ++g.shift;
  if (1 << g.shift != g.width) g.shift = -1;
  const int64_t wanted = std::max<int64_t>(2 * f.radius, 4096 / g.width);
  const int64_t whole = (std::min(wanted, f.n) + kResults - 1) / kResults * kResults;
  for (int64_t length = whole; length >= kResults; length = length / 2 / kResults * kResults) {
    g.length = static_cast<int>(length);
    if (axis_bytes<T>(f, g) <= static_cast<size_t>(kSharedBytes)) break;
    g.length = 0;
  }
  if (4 * int64_t{g.length} < f.radius) g.length = 0;  // nearly all of a tile would be surroundings
  if (!g.length) return g;
  g.along = (f.n + g.length - 1) / g.length;
  g.across = (f.inner + g.width - 1) / g.width;
  return g;
}

template <typename T>
void filter_axis(const AxisFilter& f, const T* taps, const T* x, T* y) {
  const int64_t count = f.outer * f.n * f.inner;
  if (count <= 0) return;
  const auto* weights = static_cast<const T*>(device_constant(taps, static_cast<size_t>(2 * f.radius + 1) * sizeof(T)));
  const AxisTile g = tile_for<T>(f);
  const int64_t blocks = f.outer * g.along * g.across;
  if (g.length && blocks < int64_t{1} << 31)
    launch(filter_tile<T>, static_cast<unsigned>(blocks), kThreads, axis_bytes<T>(f, g), f, g, weights, x, y);
  else
    launch(filter_direct<T>, blocks_for(count, kThreads), kThreads, 0, count, f, weights, x, y);
}

// --- two axes -------------------------------------------------------------------------------------------------------

/// Tiles of `height` rows by `width` pixels of `inner` values.
struct PlaneTile {
  int height, width, inner, row_radius, column_radius;
  int64_t down, across;

  /// Values of a line of the first tile; odd, so that lanes on different rows read different banks.
  __host__ __device__ int pitch() const { return ((width + 2 * column_radius) * inner) | 1; }
  __host__ __device__ int line() const { return (width * inner) | 1; }
  __host__ __device__ int rows() const { return height + 2 * row_radius; }
  size_t bytes() const {
    return static_cast<size_t>(2 * (row_radius + column_radius) + 2 + rows() * (pitch() + line())) * sizeof(float);
  }
};

__global__ void __launch_bounds__(kThreads)
    filter_plane(AxisFilter rows, AxisFilter columns, PlaneTile g, const float* row_taps, const float* column_taps,
                 const float* x, float* y) {
  SHARED_BYTES(bytes);
  auto* down_tap = reinterpret_cast<float*>(bytes);
  float* across_tap = down_tap + 2 * g.row_radius + 1;
  float* tile = across_tap + 2 * g.column_radius + 1;
  const int pitch = g.pitch(), line = g.line(), height = g.rows(), wide = g.width * g.inner;
  float* filtered = tile + height * pitch;
  const int64_t b = blockIdx.x, j0 = b % g.across * g.width, i0 = b / g.across % g.down * g.height;
  const int64_t length = columns.n * columns.inner, plane = b / g.across / g.down * rows.n * length;
  const auto thread = static_cast<int>(threadIdx.x);

  for (int t = thread; t <= 2 * g.row_radius; t += kThreads) down_tap[t] = row_taps[t];
  for (int t = thread; t <= 2 * g.column_radius; t += kThreads) across_tap[t] = column_taps[t];
  // a warp reads a row after the other
  for (int row = thread / 32; row < height; row += static_cast<int>(kThreads) / 32) {
    const int64_t i = i0 + row - g.row_radius;
    const int64_t from_row = i < rows.n + g.row_radius ? rows.source(i) : -1;
    for (int e = thread % 32; e < (g.width + 2 * g.column_radius) * g.inner; e += 32) {
      const int pixel = g.inner == 1 ? e : e / g.inner;
      const int64_t j = j0 + pixel - g.column_radius;
      float value = static_cast<float>(columns.outside);
      if (from_row >= 0 && j < columns.n + g.column_radius) {
        const int64_t from = columns.source(j);
        if (from >= 0) value = x[plane + from_row * length + from * g.inner + e - pixel * g.inner];
      }
      tile[row * pitch + e] = value;
    }
  }
  __syncthreads();
  // lanes on neighbouring rows: the pitch is odd
  const int runs = g.width / kResults * g.inner;
  for (int e = thread; e < height * runs; e += kThreads) {
    const int run = e / height, row = e - run * height, first = run / g.inner * kResults * g.inner + run % g.inner;
    float sum[kResults];
    weigh_many(Symmetry::none, g.column_radius, across_tap, tile + row * pitch + first, g.inner, sum);
    const int64_t i = i0 + row - g.row_radius;
    const bool beyond = rows.border == Border::constant && (i < 0 || i >= rows.n);
#pragma unroll
    for (int r = 0; r < kResults; ++r)
      filtered[row * line + first + r * g.inner] = beyond ? static_cast<float>(rows.outside) : sum[r];
  }
  __syncthreads();
  for (int e = thread; e < g.height / kResults * wide; e += kThreads) {
    const int run = e / wide, column = e - run * wide;
    float sum[kResults];
    weigh_many(Symmetry::none, g.row_radius, down_tap, filtered + run * kResults * line + column, line, sum);
    const int64_t j = j0 * g.inner + column;
#pragma unroll
    for (int r = 0; r < kResults; ++r) {
      const int64_t i = i0 + run * kResults + r;
      if (i < rows.n && j < length) y[plane + i * length + j] = sum[r];
    }
  }
}

PlaneTile plane_tile(const AxisFilter& rows, const AxisFilter& columns) {
  PlaneTile g{};
  g.inner = static_cast<int>(columns.inner);
  g.row_radius = static_cast<int>(rows.radius);
  g.column_radius = static_cast<int>(columns.radius);
  const auto whole = [](int64_t size, int64_t most) {
    return static_cast<int>((std::min(size, most) + kResults - 1) / kResults * kResults);
  };
  g.height = whole(rows.n, 64);
  g.width = whole(columns.n, columns.inner == 1 ? 64 : 32);
  g.down = (rows.n + g.height - 1) / g.height;
  g.across = (columns.n + g.width - 1) / g.width;
  return g;
}

void correlate2d(const AxisFilter& rows, const AxisFilter& columns, const float* row_taps, const float* column_taps,
                 const float* x, float* y) {
  const int64_t count = rows.outer * rows.n * columns.n * columns.inner;
  if (count <= 0) return;
  if (columns.inner <= 4 && rows.radius <= 32 && columns.radius <= 32) {
    const PlaneTile g = plane_tile(rows, columns);
    const int64_t blocks = rows.outer * g.down * g.across;
    if (g.bytes() <= static_cast<size_t>(kSharedBytes) && blocks < int64_t{1} << 31) {
      const auto taps = [](const float* host, int64_t radius) {
        return static_cast<const float*>(device_constant(host, static_cast<size_t>(2 * radius + 1) * sizeof(float)));
      };
      launch(filter_plane, static_cast<unsigned>(blocks), kThreads, g.bytes(), rows, columns, g,
             taps(row_taps, rows.radius), taps(column_taps, columns.radius), x, y);
      return;
    }
  }
  float* between = device_scratch_floats(0, count);
  filter_axis(columns, column_taps, x, between);
  filter_axis(rows, row_taps, between, y);
}

}  // namespace

extern const FilterOps filter;
const FilterOps filter = {filter_axis<float>, filter_axis<double>, correlate2d};

}  // namespace medmpi::cuda
