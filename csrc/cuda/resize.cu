// Nearest and bilinear resizing. Backward gathers: each input pixel adds up the output pixels that have read it, in
// order; which those are is found once per row and column.
//
// Scratch: slot 0, the tables of backward.
#include "cuda/rows.cuh"
#include "ops/resize.h"

namespace medmpi::cuda {
namespace {

/// Where an output coordinate falls between two input coordinates: (1 - weight) of low and weight of high. The
/// arithmetic of the CPU, operation by operation, so that both read the same pixels.
struct Source {
  int64_t low, high;
  float weight;
};
struct Axis {
  int64_t in, out;
  bool nearest, align_corners;
  float ratio;

  __device__ __forceinline__ Source source(int64_t at_out) const {
    const auto i = static_cast<float>(at_out);
    if (nearest) {
      const auto at = static_cast<int64_t>(__fmul_rn(i, ratio));
      const int64_t low = at < in ? at : in - 1;
      return {low, low, 0.0f};
    }
    float at = align_corners ? __fmul_rn(i, ratio) : __fsub_rn(__fmul_rn(i + 0.5f, ratio), 0.5f);
    at = at < 0.0f ? 0.0f : at;
    auto low = static_cast<int64_t>(at);
    low = low < in ? low : in - 1;
    return {low, low + 1 < in ? low + 1 : low, at - static_cast<float>(low)};
  }
};

Axis axis_of(const ResizeShape& s, int64_t in, int64_t out) {
  Axis a{in, out, s.interpolation == Interpolation::nearest, s.align_corners, 0.0f};
  if (a.nearest || !s.align_corners)
    a.ratio = static_cast<float>(in) / static_cast<float>(out);
  else if (out > 1)
    a.ratio = static_cast<float>(in - 1) / static_cast<float>(out - 1);
  return a;
}

/// A pixel's place from its number, for images of h x w pixels of `groups` channel groups.
struct Pixel {
  int64_t image, row, column, group;
};
template <typename Index>
__device__ __forceinline__ Pixel pixel_of(int64_t i, int64_t h, int64_t w, int64_t groups) {
  auto rest = static_cast<Index>(i);
  const Index group = rest % static_cast<Index>(groups);
  rest /= static_cast<Index>(groups);
  const Index column = rest % static_cast<Index>(w);
  rest /= static_cast<Index>(w);
  return {static_cast<int64_t>(rest / static_cast<Index>(h)), static_cast<int64_t>(rest % static_cast<Index>(h)),
          static_cast<int64_t>(column), static_cast<int64_t>(group)};
}

template <int Wide, typename Index>
__global__ void __launch_bounds__(kThreads)
    resize_pixels(int64_t count, int64_t c, Axis rows, Axis columns, const float* x, float* y) {
  for (int64_t i = first_of_grid(); i < count; i += size_of_grid()) {
    const Pixel at = pixel_of<Index>(i, rows.out, columns.out, c / Wide);
    const Source v = rows.source(at.row), u = columns.source(at.column);
    const float* top = x + (at.image * rows.in + v.low) * columns.in * c + at.group * Wide;
    const float* bottom = x + (at.image * rows.in + v.high) * columns.in * c + at.group * Wide;
    const Pack<Wide> a = load_pack<Wide>(top + u.low * c), b = load_pack<Wide>(top + u.high * c);
    const Pack<Wide> d = load_pack<Wide>(bottom + u.low * c), e = load_pack<Wide>(bottom + u.high * c);
    const float w = u.weight, z = v.weight;
    Pack<Wide> out;
#pragma unroll
    for (int k = 0; k < Wide; ++k)
      out.v[k] = (1 - z) * ((1 - w) * a.v[k] + w * b.v[k]) + z * ((1 - w) * d.v[k] + w * e.v[k]);
    store_pack<Wide>(y + i * Wide, out);
  }
}

void forward(const ResizeShape& s, const float* x, float* y) {
  const int64_t total = s.n * s.out_h * s.out_w * s.c;
  if (total <= 0) return;
  const bool wide = wide_rows(s.c, x, y);
  const int64_t count = wide ? total / 4 : total;
  const bool small = count < int64_t{1} << 31;
  const auto kernel = wide ? (small ? resize_pixels<4, uint32_t> : resize_pixels<4, uint64_t>)
                           : (small ? resize_pixels<1, uint32_t> : resize_pixels<1, uint64_t>);
  launch(kernel, blocks_for(count, kThreads), kThreads, 0, count, s.c, axis_of(s, s.h, s.out_h),
         axis_of(s, s.w, s.out_w), x, y);
}

/// The outputs whose sources may be input i: readers[i] .. readers[in + i] - 1. Sources ascend with the output.
__global__ void __launch_bounds__(kThreads) find_readers(Axis a, int32_t* readers) {
  const auto first_from = [&a](int64_t low) {  // the first output whose lower source is `low` or beyond
    int64_t begin = 0, end = a.out;
    while (begin < end) {
      const int64_t middle = (begin + end) / 2;
      if (a.source(middle).low < low)
        begin = middle + 1;
      else
        end = middle;
    }
    return static_cast<int32_t>(begin);
  };
  for (int64_t i = first_of_grid(); i < a.in; i += size_of_grid()) {
    readers[i] = first_from(a.nearest ? i : i - 1);
    readers[a.in + i] = first_from(i + 1);
  }
}

/// The share of input i in an output with this source.
__device__ __forceinline__ float share_of(const Source& s, int64_t i) {
  return (s.low == i ? 1.0f - s.weight : 0.0f) + (s.high == i ? s.weight : 0.0f);
}

template <int Wide, typename Index>
__global__ void __launch_bounds__(kThreads)
    gather_pixels(int64_t count, int64_t c, Axis rows, Axis columns, const int32_t* row_readers,
                  const int32_t* column_readers, const float* dy, float* dx) {
  for (int64_t i = first_of_grid(); i < count; i += size_of_grid()) {
    const Pixel at = pixel_of<Index>(i, rows.in, columns.in, c / Wide);
    const int p1 = row_readers[rows.in + at.row], q1 = column_readers[columns.in + at.column];
    Pack<Wide> sum{};
    for (int p = row_readers[at.row]; p < p1; ++p) {
      const float z = share_of(rows.source(p), at.row);
      if (z == 0.0f) continue;
      const float* line = dy + (at.image * rows.out + p) * columns.out * c + at.group * Wide;
      for (int q = column_readers[at.column]; q < q1; ++q) {
        const float w = z * share_of(columns.source(q), at.column);
        const Pack<Wide> g = load_pack<Wide>(line + q * c);
#pragma unroll
        for (int k = 0; k < Wide; ++k) sum.v[k] += w * g.v[k];
      }
    }
    store_pack<Wide>(dx + i * Wide, sum);
  }
}

void backward(const ResizeShape& s, const float* dy, float* dx) {
  const int64_t total = s.n * s.h * s.w * s.c;
  if (total <= 0) return;
  const Axis rows = axis_of(s, s.h, s.out_h), columns = axis_of(s, s.w, s.out_w);
  auto* row_readers = static_cast<int32_t*>(device_scratch(0, static_cast<size_t>(2 * (s.h + s.w)) * sizeof(int32_t)));
  int32_t* column_readers = row_readers + 2 * s.h;
  launch(find_readers, blocks_for(s.h, kThreads), kThreads, 0, rows, row_readers);
  launch(find_readers, blocks_for(s.w, kThreads), kThreads, 0, columns, column_readers);
  const bool wide = wide_rows(s.c, dy, dx);
  const int64_t count = wide ? total / 4 : total;
  const bool small = count < int64_t{1} << 31;
  const auto kernel = wide ? (small ? gather_pixels<4, uint32_t> : gather_pixels<4, uint64_t>)
                           : (small ? gather_pixels<1, uint32_t> : gather_pixels<1, uint64_t>);
  launch(kernel, blocks_for(count, kThreads), kThreads, 0, count, s.c, rows, columns, row_readers, column_readers, dy,
         dx);
}

}  // namespace

extern const ResizeOps resize;
const ResizeOps resize = {forward, backward};

}  // namespace medmpi::cuda
