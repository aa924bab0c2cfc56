// Depthwise 3x3 convolution of stride 2: walks along rows, each value loaded once for all outputs of the row. Columns
// that lie between two outputs belong to both: their part of the next output is carried over. The gradient for the
// input makes two rows and two columns of dx at each step: of these four one meets four taps, two meet two, one meets
// one.
#include "cpu/depthwise_stride2.h"

#include "cpu/simd.h"
#include "cpu/sizes.h"

namespace medmpi::MEDMPI_ISA {
namespace {

template <typename Load>
MEDMPI_INLINE void load_taps(const float* weight, int64_t channels, const Load& get, Vec (&tap)[9]) {
#pragma GCC unroll 9
  for (int t = 0; t < 9; ++t) tap[t] = get(weight + t * channels);
}

/// Output columns [begin, end) take all their input columns from inside the image.
struct Inner {
  int64_t begin, end;
};
Inner inner_columns(const Walk& k) {
  const int64_t begin = smaller(larger(0, (k.left + 1) / 2), k.ow);
  return {begin, larger(begin, smaller(k.w - 3 + k.left < 0 ? 0 : (k.w - 3 + k.left) / 2 + 1, k.ow))};
}

/// Three rows of one vector of channels.
template <bool Full>
struct Columns {
  Row row[3];
  int64_t width;
  Channels<Full> channels;

  MEDMPI_INLINE void get(int64_t q, bool inside, Vec (&v)[3]) const {
#pragma GCC unroll 3
    for (int r = 0; r < 3; ++r)
      v[r] = inside || (q >= 0 && q < width) ? channels.get(row[r].data + q * row[r].step) : Vec{};
  }
};

template <bool Full>
MEDMPI_INLINE Columns<Full> columns_of(const Walk& k, Channels<Full> channels, int64_t c, int64_t i,
                                       const float* image) {
  const int64_t top = 2 * i - k.top;
  return {{row_at(image, top, k.h, k.w, k.c, c), row_at(image, top + 1, k.h, k.w, k.c, c),
           row_at(image, top + 2, k.h, k.w, k.c, c)},
          k.w,
          channels};
}

}  // namespace

void depthwise_stride2_forward(const Conv2dShape& g, const float* x, const float* weight, const Epilogue& e, float* y) {
  const Walk k{g.h, g.w, g.c, g.out_h(), g.out_w(), g.pad_top, g.pad_left};
  const Inner inner = inner_columns(k);
#pragma omp parallel for schedule(static)
  for (int64_t line = 0; line < g.n * k.oh; ++line) {
    const int64_t n = line / k.oh, i = line % k.oh;
    const float* const image = x + n * k.h * k.w * k.c;
    for_channels(k.c, [&](int64_t c, auto channels) {
      Vec tap[9];
      load_taps(weight + c, k.c, [&](const float* p) { return channels.get(p); }, tap);
      const Vec start = e.bias ? channels.get(e.bias + c) : Vec{};
      const auto columns = columns_of(k, channels, c, i, image);
      float* out = y + line * k.ow * k.c + c;
      Vec a[3], b[3];
      columns.get(-k.left, false, a);
      Vec carry = start + a[0] * tap[0] + a[1] * tap[3] + a[2] * tap[6];
      const auto step = [&](int64_t j, bool inside) __attribute__((always_inline)) {
        const int64_t q = 2 * j - k.left;
        columns.get(q + 1, inside, a);
        columns.get(q + 2, inside, b);
        Vec sum =
            (carry + a[0] * tap[1] + a[1] * tap[4] + a[2] * tap[7]) + (b[0] * tap[2] + b[1] * tap[5] + b[2] * tap[8]);
        carry = start + b[0] * tap[0] + b[1] * tap[3] + b[2] * tap[6];
        if (e.relu) sum = sum < Vec{} ? Vec{} : sum;
        channels.put(out, sum);
        out += k.c;
      };
      int64_t j = 0;
      for (; j < inner.begin; ++j) step(j, false);
      for (; j < inner.end; ++j) step(j, true);
      for (; j < k.ow; ++j) step(j, false);
    });
    if (e.finish) e.finish->wrote_pixels(line * k.ow, k.ow, k.c);
  }
}

void depthwise_stride2_backward_data(const Conv2dShape& g, const float* dy, const float* weight, const float* bias,
                                     float* dx) {
  const int64_t oh = g.out_h(), ow = g.out_w();
  // padded rows 2 i and 2 i + 1, padded columns 2 j and 2 j + 1
  const int64_t i0 = g.pad_top / 2, pairs = (g.h + g.pad_top + 1) / 2 - i0;
  const int64_t j0 = g.pad_left / 2, j1 = (g.w + g.pad_left + 1) / 2;
  const Inner inner{smaller((g.pad_left + 1) / 2, j1), smaller((g.w + g.pad_left) / 2, ow)};
  const bool far = is_far(g.n * g.h * g.w * g.c);
#pragma omp parallel for schedule(static)
  for (int64_t item = 0; item < g.n * pairs; ++item) {
    const int64_t n = item / pairs, i = i0 + item % pairs, h = 2 * i - g.pad_top;
    for_channels(g.c, [&](int64_t c, auto channels) {
      Vec tap[9];
      load_taps(weight + c, g.c, [&](const float* p) { return channels.get(p); }, tap);
      const Vec start = bias ? channels.get(bias + c) : Vec{};
      const float* const image = dy + n * oh * ow * g.c;
      const Row row[2] = {row_at(image, i, oh, ow, g.c, c), row_at(image, i - 1, oh, ow, g.c, c)};
      float* const even = dx + (n * g.h + h) * g.w * g.c + c;
      float* const odd = even + g.w * g.c;
      const bool has_even = h >= 0, has_odd = h + 1 < g.h;
      Vec d{}, e{};
      const auto step = [&](int64_t j, bool inside) __attribute__((always_inline)) {
        const int64_t w = 2 * j - g.pad_left;
        const Vec d1 = d, e1 = e;
        d = inside || (j >= 0 && j < ow) ? channels.get(row[0].data + j * row[0].step) : Vec{};
        e = inside || (j >= 0 && j < ow) ? channels.get(row[1].data + j * row[1].step) : Vec{};
        if (inside && far) {
          fetch<kLanes, 0>(image + (i + 1) * ow * g.c + c * ow + j * kLanes);
          fetch<4 * kLanes, 1>(odd - c + g.w * g.c + c * 2 * g.w + (j - j0) * 4 * kLanes);
        }
        const bool left = inside || w >= 0, right = inside || w + 1 < g.w;
        if (has_even && left) channels.put(even + w * g.c, start + d * tap[0] + d1 * tap[2] + e * tap[6] + e1 * tap[8]);
        if (has_even && right) channels.put(even + (w + 1) * g.c, start + d * tap[1] + e * tap[7]);
        if (has_odd && left) channels.put(odd + w * g.c, start + d * tap[3] + d1 * tap[5]);
        if (has_odd && right) channels.put(odd + (w + 1) * g.c, start + d * tap[4]);
      };
      int64_t j = j0;
      if (j > 0 && j <= ow) {  // the column before the first
        d = channels.get(row[0].data + (j - 1) * row[0].step);
        e = channels.get(row[1].data + (j - 1) * row[1].step);
      }
      for (; j < inner.begin; ++j) step(j, false);
      for (; j < inner.end; ++j) step(j, true);
      for (; j < j1; ++j) step(j, false);
    });
  }
}

void depthwise_stride2_weight_rows(const Walk& k, int64_t i0, int64_t i1, const float* image, const float* dy,
                                   float* sums) {
  const Inner inner = inner_columns(k);
  for (int64_t i = i0; i < i1; ++i)
    for_channels(k.c, [&](int64_t c, auto channels) {
      const auto columns = columns_of(k, channels, c, i, image);
      const float* grad = dy + i * k.ow * k.c + c;
      Vec sum[9] = {}, a[3], b[3], d[3];
      columns.get(-k.left, false, a);
      const auto step = [&](int64_t j, bool inside) __attribute__((always_inline)) {
        const int64_t q = 2 * j - k.left;
        columns.get(q + 1, inside, b);
        columns.get(q + 2, inside, d);
        const Vec g = channels.get(grad);
#pragma GCC unroll 3
        for (int r = 0; r < 3; ++r) {
          sum[3 * r] += a[r] * g;
          sum[3 * r + 1] += b[r] * g;
          sum[3 * r + 2] += d[r] * g;
          a[r] = d[r];
        }
        grad += k.c;
      };
      int64_t j = 0;
      for (; j < inner.begin; ++j) step(j, false);
      for (; j < inner.end; ++j) step(j, true);
      for (; j < k.ow; ++j) step(j, false);
#pragma GCC unroll 9
      for (int v = 0; v < 9; ++v) channels.put(sums + v * k.c + c, channels.get(sums + v * k.c + c) + sum[v]);
    });
}

}  // namespace medmpi::MEDMPI_ISA
