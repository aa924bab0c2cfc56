// Pooling: a thread makes one pixel of four channels (or one) and gathers what it needs; windows overlap in the caches.
// Backward gathers too: each input pixel adds up the windows it belongs to, in a fixed order, and is written once.
#include <limits>

#include "cuda/rows.cuh"
#include "ops/pool.h"

namespace medmpi::cuda {
namespace {

/// A pixel of one image and its group of channels. Index is 32 bits wide where that suffices: it divides faster.
template <typename Index>
struct Place {
  Index n, h, w, channel;
};
template <int Wide, typename Index>
__device__ __forceinline__ Place<Index> place_of(int64_t i, int64_t h, int64_t w, int64_t c) {
  const auto groups = static_cast<Index>(c / Wide), width = static_cast<Index>(w), height = static_cast<Index>(h);
  auto rest = static_cast<Index>(i);
  Place<Index> p;
  p.channel = rest % groups * Wide;
  rest /= groups;
  p.w = rest % width;
  rest /= width;
  p.h = rest % height;
  p.n = rest / height;
  return p;
}

template <int Wide>
__device__ __forceinline__ void store_index(uint8_t* p, const int (&v)[Wide]) {
  if constexpr (Wide == 4)
    *reinterpret_cast<uchar4*>(p) = make_uchar4(static_cast<uint8_t>(v[0]), static_cast<uint8_t>(v[1]),
                                                static_cast<uint8_t>(v[2]), static_cast<uint8_t>(v[3]));
  else
    *p = static_cast<uint8_t>(v[0]);
}
template <int Wide>
__device__ __forceinline__ void store_index(int32_t* p, const int (&v)[Wide]) {
  if constexpr (Wide == 4)
    *reinterpret_cast<int4*>(p) = make_int4(v[0], v[1], v[2], v[3]);
  else
    *p = v[0];
}
template <int Wide>
__device__ __forceinline__ void load_index(const uint8_t* p, int (&v)[Wide]) {
  if constexpr (Wide == 4) {
    const uchar4 q = *reinterpret_cast<const uchar4*>(p);
    v[0] = q.x, v[1] = q.y, v[2] = q.z, v[3] = q.w;
  } else {
    v[0] = *p;
  }
}
template <int Wide>
__device__ __forceinline__ void load_index(const int32_t* p, int (&v)[Wide]) {
  if constexpr (Wide == 4) {
    const int4 q = *reinterpret_cast<const int4*>(p);
    v[0] = q.x, v[1] = q.y, v[2] = q.z, v[3] = q.w;
  } else {
    v[0] = *p;
  }
}

/// The taps inside the image along one axis: first .. last-1, the first at `position`.
struct Taps {
  int first, last, position;
};
__device__ __forceinline__ Taps taps_inside(int out, int stride, int pad, int dilation, int taps, int size) {
  const int start = out * stride - pad;
  const int first = start < 0 ? (-start + dilation - 1) / dilation : 0;
  const int room = start < size ? (size - 1 - start) / dilation + 1 : 0;
  return {first, room < taps ? room : taps, start + first * dilation};
}

/// MaxPool with sizes of 32 bits: sides and windows are far smaller.
struct Window {
  int h, w, p, q, r, s, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  explicit Window(const MaxPool& d)
      : h(static_cast<int>(d.h)),
        w(static_cast<int>(d.w)),
        p(static_cast<int>(d.p)),
        q(static_cast<int>(d.q)),
        r(static_cast<int>(d.r)),
        s(static_cast<int>(d.s)),
        stride_h(static_cast<int>(d.stride_h)),
        stride_w(static_cast<int>(d.stride_w)),
        pad_h(static_cast<int>(d.pad_h)),
        pad_w(static_cast<int>(d.pad_w)),
        dilation_h(static_cast<int>(d.dilation_h)),
        dilation_w(static_cast<int>(d.dilation_w)) {}
};

/// The first of equals wins; NaN wins over numbers, and the last NaN over others.
template <int Wide, typename Index, typename Place32>
__global__ void __launch_bounds__(kThreads)
    max_forward(int64_t count, int64_t c, Window d, const float* x, float* y, Index* index) {
  for (int64_t i = first_of_grid(); i < count; i += size_of_grid()) {
    const auto at = place_of<Wide, Place32>(i, d.p, d.q, c);
    const Taps rows = taps_inside(static_cast<int>(at.h), d.stride_h, d.pad_h, d.dilation_h, d.r, d.h);
    const Taps columns = taps_inside(static_cast<int>(at.w), d.stride_w, d.pad_w, d.dilation_w, d.s, d.w);
    Pack<Wide> best;
    int place[Wide];
    const bool any = rows.first < rows.last && columns.first < columns.last;
#pragma unroll
    for (int k = 0; k < Wide; ++k) {
      best.v[k] = -std::numeric_limits<float>::infinity();
      place[k] = any ? rows.first * d.s + columns.first : 0;
    }
    const int64_t line = static_cast<int64_t>(d.w) * c;
    const float* row = x + (static_cast<int64_t>(at.n) * d.h + rows.position) * line +
                       static_cast<int64_t>(columns.position) * c + at.channel;
    for (int r = rows.first; r < rows.last; ++r, row += d.dilation_h * line) {
      const float* p = row;
      for (int s = columns.first; s < columns.last; ++s, p += d.dilation_w * c) {
        const Pack<Wide> v = load_pack<Wide>(p);
#pragma unroll
        for (int k = 0; k < Wide; ++k)
          if (v.v[k] > best.v[k] || v.v[k] != v.v[k]) {
            best.v[k] = v.v[k];
            place[k] = r * d.s + s;
          }
      }
    }
    store_pack<Wide>(y + i * Wide, best);
    store_index<Wide>(index + i * Wide, place);
  }
}

template <typename Index>
void max_as(const MaxPool& d, const float* x, float* y, Index* index) {
  const int64_t total = d.n * d.p * d.q * d.c;
  if (total <= 0) return;
  const bool wide = wide_rows(d.c, x, y, reinterpret_cast<const float*>(index));
  const int64_t count = wide ? total / 4 : total;
  const bool small = count < int64_t{1} << 31;
  const auto kernel = wide ? (small ? max_forward<4, Index, uint32_t> : max_forward<4, Index, uint64_t>)
                           : (small ? max_forward<1, Index, uint32_t> : max_forward<1, Index, uint64_t>);
  launch(kernel, blocks_for(count, kThreads), kThreads, 0, count, d.c, Window(d), x, y, index);
}

/// The windows that may hold an input: outputs first .. last-1.
struct Span {
  int first, last;
};
__device__ __forceinline__ Span windows_of(int in, int stride, int pad, int reach, int out) {
  const int low = in + pad - reach, high = (in + pad) / stride + 1;
  return {low > 0 ? (low + stride - 1) / stride : 0, high < out ? high : out};
}

template <int Wide, typename Index, typename Place32>
__global__ void __launch_bounds__(kThreads)
    max_gather(int64_t count, int64_t c, Window d, const float* dy, const Index* index, float* dx) {
  for (int64_t i = first_of_grid(); i < count; i += size_of_grid()) {
    const auto at = place_of<Wide, Place32>(i, d.h, d.w, c);
    const int h = static_cast<int>(at.h), w = static_cast<int>(at.w);
    const Span rows = windows_of(h, d.stride_h, d.pad_h, (d.r - 1) * d.dilation_h, d.p);
    const Span columns = windows_of(w, d.stride_w, d.pad_w, (d.s - 1) * d.dilation_w, d.q);
    Pack<Wide> sum{};
    for (int p = rows.first; p < rows.last; ++p) {
      const int down = h + d.pad_h - p * d.stride_h, r = down / d.dilation_h;
      if (r * d.dilation_h != down) continue;
      for (int q = columns.first; q < columns.last; ++q) {
        const int right = w + d.pad_w - q * d.stride_w, s = right / d.dilation_w;
        if (s * d.dilation_w != right) continue;
        const int64_t from = ((static_cast<int64_t>(at.n) * d.p + p) * d.q + q) * c + at.channel;
        const Pack<Wide> g = load_pack<Wide>(dy + from);
        int place[Wide];
        load_index<Wide>(index + from, place);
#pragma unroll
        for (int k = 0; k < Wide; ++k)
          if (place[k] == r * d.s + s) sum.v[k] += g.v[k];
      }
    }
    store_pack<Wide>(dx + i * Wide, sum);
  }
}

template <typename Index>
void max_backward_as(const MaxPool& d, const float* dy, const Index* index, float* dx) {
  const int64_t total = d.n * d.h * d.w * d.c;
  if (total <= 0) return;
  const bool wide = wide_rows(d.c, dy, dx, reinterpret_cast<const float*>(index));
  const int64_t count = wide ? total / 4 : total;
  const bool small = count < int64_t{1} << 31;
  const auto kernel = wide ? (small ? max_gather<4, Index, uint32_t> : max_gather<4, Index, uint64_t>)
                           : (small ? max_gather<1, Index, uint32_t> : max_gather<1, Index, uint64_t>);
  launch(kernel, blocks_for(count, kThreads), kThreads, 0, count, d.c, Window(d), dy, index, dx);
}

// --- average --------------------------------------------------------------------------------------------------------

/// Tables of one axis in device memory.
Windows on_device(const Windows& w) {
  const auto copied = [](const int32_t* p, int64_t count) {
    return count > 0 ? static_cast<const int32_t*>(device_constant(p, static_cast<size_t>(count) * sizeof *p)) : p;
  };
  return {w.in,
          w.out,
          copied(w.begin, w.out),
          copied(w.end, w.out),
          copied(w.size, w.out),
          copied(w.first, w.in),
          copied(w.last, w.in)};
}

/// Row by row: a row's sum is added as a whole, which loses less.
template <int Wide, typename Place32>
__global__ void __launch_bounds__(kThreads)
    average_forward(int64_t count, int64_t c, Windows down, Windows across, const float* x, float* y) {
  for (int64_t i = first_of_grid(); i < count; i += size_of_grid()) {
    const auto at = place_of<Wide, Place32>(i, down.out, across.out, c);
    const int rows = down.end[at.h] - down.begin[at.h], columns = across.end[at.w] - across.begin[at.w];
    const float size = static_cast<float>(static_cast<int64_t>(down.size[at.h]) * across.size[at.w]);
    const int64_t line = across.in * c;
    const float* row =
        x + (static_cast<int64_t>(at.n) * down.in + down.begin[at.h]) * line + across.begin[at.w] * c + at.channel;
    Pack<Wide> sum{};
    for (int r = 0; r < rows; ++r, row += line) {
      Pack<Wide> part{};
      for (int s = 0; s < columns; ++s) {
        const Pack<Wide> v = load_pack<Wide>(row + s * c);
#pragma unroll
        for (int k = 0; k < Wide; ++k) part.v[k] += v.v[k];
      }
#pragma unroll
      for (int k = 0; k < Wide; ++k) sum.v[k] += part.v[k];
    }
#pragma unroll
    for (int k = 0; k < Wide; ++k) sum.v[k] /= size;
    store_pack<Wide>(y + i * Wide, sum);
  }
}

/// One large window of each image and channel group: the block's rows share it out.
template <int Wide>
__global__ void __launch_bounds__(kThreads) average_all(RowTiles t, float size, const float* x, float* y) {
  const int64_t j = t.channel<Wide>(), image = blockIdx.y;
  double sum[Wide] = {};
  if (j < t.c)
#pragma unroll 4
    for (int64_t i = t.pass_row(); i < t.m; i += t.rows_per_pass) {
      const Pack<Wide> v = load_pack<Wide>(x + (image * t.m + i) * t.c + j);
#pragma unroll
      for (int k = 0; k < Wide; ++k) sum[k] += static_cast<double>(v.v[k]);
    }
  sum_over_rows<Wide>(t, sum);
  if (j >= t.c || t.pass_row()) return;
  Pack<Wide> out;
#pragma unroll
  for (int k = 0; k < Wide; ++k) out.v[k] = static_cast<float>(sum[k]) / size;
  store_pack<Wide>(y + image * t.c + j, out);
}

void average(int64_t n, int64_t c, const Windows& rows, const Windows& columns, const float* x, float* y) {
  const int64_t total = n * rows.out * columns.out * c;
  if (total <= 0) return;
  const bool wide = wide_rows(c, x, y);
  if (rows.out == 1 && columns.out == 1 && rows.in * columns.in >= 16 && n < 65536 && rows.begin[0] == 0 &&
      rows.end[0] == rows.in && columns.begin[0] == 0 && columns.end[0] == columns.in) {
    RowTiles t = tile_rows(rows.in * columns.in, c, wide ? 4 : 1, 0, 1);
    const auto size = static_cast<float>(int64_t{rows.size[0]} * columns.size[0]);
    launch(wide ? average_all<4> : average_all<1>, dim3(static_cast<unsigned>(t.tiles), static_cast<unsigned>(n)),
           kThreads, 0, t, size, x, y);
    return;
  }
  const int64_t count = wide ? total / 4 : total;
  const bool small = count < int64_t{1} << 31;
  const auto kernel = wide ? (small ? average_forward<4, uint32_t> : average_forward<4, uint64_t>)
                           : (small ? average_forward<1, uint32_t> : average_forward<1, uint64_t>);
  launch(kernel, blocks_for(count, kThreads), kThreads, 0, count, c, on_device(rows), on_device(columns), x, y);
}

template <int Wide, typename Place32>
__global__ void __launch_bounds__(kThreads)
    average_gather(int64_t count, int64_t c, Windows down, Windows across, const float* dy, float* dx) {
  for (int64_t i = first_of_grid(); i < count; i += size_of_grid()) {
    const auto at = place_of<Wide, Place32>(i, down.in, across.in, c);
    Pack<Wide> sum{};
    for (int p = down.first[at.h]; p < down.last[at.h]; ++p)
      for (int q = across.first[at.w]; q < across.last[at.w]; ++q) {
        const float share = 1.0f / static_cast<float>(static_cast<int64_t>(down.size[p]) * across.size[q]);
        const Pack<Wide> g =
            load_pack<Wide>(dy + ((static_cast<int64_t>(at.n) * down.out + p) * across.out + q) * c + at.channel);
#pragma unroll
        for (int k = 0; k < Wide; ++k) sum.v[k] += g.v[k] * share;
      }
    store_pack<Wide>(dx + i * Wide, sum);
  }
}

void average_backward(int64_t n, int64_t c, const Windows& rows, const Windows& columns, const float* dy, float* dx) {
  const int64_t total = n * rows.in * columns.in * c;
  if (total <= 0) return;
  const bool wide = wide_rows(c, dy, dx);
  const int64_t count = wide ? total / 4 : total;
  const bool small = count < int64_t{1} << 31;
  const auto kernel = wide ? (small ? average_gather<4, uint32_t> : average_gather<4, uint64_t>)
                           : (small ? average_gather<1, uint32_t> : average_gather<1, uint64_t>);
  launch(kernel, blocks_for(count, kThreads), kThreads, 0, count, c, on_device(rows), on_device(columns), dy, dx);
}

}  // namespace

extern const PoolOps pool;
const PoolOps pool = {max_as<uint8_t>,          max_as<int32_t>, max_backward_as<uint8_t>,
                      max_backward_as<int32_t>, average,         average_backward};

}  // namespace medmpi::cuda
