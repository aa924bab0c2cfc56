// Depthwise convolution: vectors along the channels. All of it is bound by memory, so each value is loaded as rarely as
// the registers allow: 3x3 with stride 1 walks two output rows at a time along the columns; a column of four inputs is
// loaded once and goes into the partial sums of the three output columns that see it. Its gradient for the input is the
// same walk with the filter turned. Rows outside the image are a zero vector read with step 0.
// Scratch slot: 14 (gradients of the parts of the batch) of the calling thread.
#include "cpu/depthwise.h"

#include "cpu/depthwise_rows.h"
#include "cpu/depthwise_stride2.h"
#include "cpu/depthwise_tile.h"
#include "ops/scratch.h"

namespace medmpi::MEDMPI_ISA {
namespace {

constexpr int64_t kTileChannels = 256;  // from here on tiles are as quick
constexpr int64_t kPartRows = 16;       // output rows of one part of a weight gradient
constexpr int64_t kSumBlock = 64;       // values of the gradient added up at a time

/// Output rows i and i + 1 of one image and one vector of channels. `tap[3 r + s]` are the filter's vectors.
template <bool Full>
MEDMPI_INLINE void walk_rows(const Walk& k, Channels<Full> channels, int64_t c, int64_t i, const float* image,
                             const Vec (&tap)[9], Vec bias, bool relu, float* y) {
  const Row row[4] = {row_at(image, i - k.top, k.h, k.w, k.c, c), row_at(image, i - k.top + 1, k.h, k.w, k.c, c),
                      row_at(image, i - k.top + 2, k.h, k.w, k.c, c), row_at(image, i - k.top + 3, k.h, k.w, k.c, c)};
  float* const out = y + i * k.ow * k.c + c;
  const bool both = i + 1 < k.oh;
  // sums of the next output column and the one after it, of both rows
  Vec next0 = bias, next1 = bias, after0 = bias, after1 = bias;
  // output column j takes its last tap from input column j + 2 - left
  const auto step = [&](int64_t j, bool inside, bool ready) __attribute__((always_inline)) {
    const int64_t q = j + 2 - k.left;
    Vec a{}, b{}, d{}, e{};
    if (inside) {
      a = channels.get(row[0].data + q * row[0].step);
      b = channels.get(row[1].data + q * row[1].step);
      d = channels.get(row[2].data + q * row[2].step);
      e = channels.get(row[3].data + q * row[3].step);
      __builtin_prefetch(row[3].data + (q + k.w) * row[3].step);  // the two rows that the next pair adds
      __builtin_prefetch(row[3].data + (q + 2 * k.w) * row[3].step);
    }
    Vec y0 = next0 + a * tap[2] + b * tap[5] + d * tap[8];
    Vec y1 = next1 + b * tap[2] + d * tap[5] + e * tap[8];
    next0 = after0 + a * tap[1] + b * tap[4] + d * tap[7];
    next1 = after1 + b * tap[1] + d * tap[4] + e * tap[7];
    after0 = bias + a * tap[0] + b * tap[3] + d * tap[6];
    after1 = bias + b * tap[0] + d * tap[3] + e * tap[6];
    if (!ready) return;
    if (relu) {
      y0 = y0 < Vec{} ? Vec{} : y0;
      y1 = y1 < Vec{} ? Vec{} : y1;
    }
    channels.put(out + j * k.c, y0);
    if (both) channels.put(out + (j + k.ow) * k.c, y1);
  };
  int64_t j = -2;
  for (; j < 0 || (j < k.ow && j + 2 < k.left); ++j) step(j, j + 2 >= k.left && j + 2 - k.left < k.w, j >= 0);
  for (; j < k.ow && j + 2 - k.left < k.w; ++j) step(j, true, true);  // hardly any column is elsewhere
  for (; j < k.ow; ++j) step(j, false, true);
}

/// y = the 3x3 walk over x; `turned`: with the filter rotated by half a turn.
void walk(const Walk& k, int64_t stride, int64_t images, const float* x, const float* weight, bool turned,
          const Epilogue& e, float* y) {
  const int64_t pairs = (k.oh + 1) / 2;
  const bool far = is_far(images * k.h * k.w * k.c);
#pragma omp parallel for schedule(static)
  for (int64_t item = 0; item < images * pairs; ++item) {
    const int64_t n = item / pairs, i = item % pairs * 2;
    const float* const image = x + n * k.h * k.w * k.c;
    float* const out = y + n * k.oh * k.ow * k.c;
    if (stride == 2 || far || k.c >= kTileChannels)
      depthwise_tile_rows(k, stride, i, far, image, weight, turned, e.bias, e.relu, out);
    else
      for_channels(k.c, [&](int64_t c, auto channels) {
        Vec tap[9];
#pragma GCC unroll 9
        for (int t = 0; t < 9; ++t) tap[t] = channels.get(weight + (turned ? 8 - t : t) * k.c + c);
        const Vec start = e.bias ? channels.get(e.bias + c) : Vec{};
        walk_rows(k, channels, c, i, image, tap, start, e.relu, out);
      });
    if (e.finish) e.finish->wrote_pixels((n * k.oh + i) * k.ow, smaller(2, k.oh - i) * k.ow, k.c);
  }
}

bool is_plain_3x3(const Conv2dShape& g) {
  return g.r == 3 && g.s == 3 && g.stride_h == 1 && g.stride_w == 1 && g.dilation_h == 1 && g.dilation_w == 1;
}

/// Output rows [i0, i1) of one image: sums[9][c] += the products with x.
__attribute__((noinline)) void walk_weight(const Walk& k, int64_t i0, int64_t i1, const float* image, const float* dy,
                                           float* sums) {
  for (int64_t i = i0; i < i1; i += 2)
    for_channels(k.c, [&](int64_t c, auto channels) {
      const Row row[4] = {row_at(image, i - k.top, k.h, k.w, k.c, c), row_at(image, i - k.top + 1, k.h, k.w, k.c, c),
                          row_at(image, i - k.top + 2, k.h, k.w, k.c, c),
                          row_at(image, i - k.top + 3, k.h, k.w, k.c, c)};
      const Row out[2] = {row_at(dy, i, i1, k.ow, k.c, c), row_at(dy, i + 1, i1, k.ow, k.c, c)};
      Vec sum[9] = {};
      Vec d0{}, d1{}, d2{}, e0{}, e1{}, e2{};  // dy of columns j, j - 1, j - 2 of both rows
      for (int64_t j = 0; j < k.ow + 2; ++j) {
        const int64_t q = j - k.left;  // this input column meets dy's column j by tap 0, j - 1 by tap 1, j - 2 by tap 2
        d2 = d1, d1 = d0, e2 = e1, e1 = e0;
        d0 = e0 = Vec{};
        if (j < k.ow) {
          d0 = channels.get(out[0].data + j * out[0].step);
          e0 = channels.get(out[1].data + j * out[1].step);
        }
        if (q < 0 || q >= k.w) continue;
        const Vec a = channels.get(row[0].data + q * row[0].step), b = channels.get(row[1].data + q * row[1].step);
        const Vec p = channels.get(row[2].data + q * row[2].step), t = channels.get(row[3].data + q * row[3].step);
        sum[0] += a * d0;
        sum[1] += a * d1;
        sum[2] += a * d2;
        sum[3] += b * d0;
        sum[4] += b * d1;
        sum[5] += b * d2;
        sum[6] += p * d0;
        sum[7] += p * d1;
        sum[8] += p * d2;
        sum[0] += b * e0;
        sum[1] += b * e1;
        sum[2] += b * e2;
        sum[3] += p * e0;
        sum[4] += p * e1;
        sum[5] += p * e2;
        sum[6] += t * e0;
        sum[7] += t * e1;
        sum[8] += t * e2;
      }
#pragma GCC unroll 9
      for (int v = 0; v < 9; ++v) channels.put(sums + v * k.c + c, channels.get(sums + v * k.c + c) + sum[v]);
    });
}

/// The same for any filter.
void rows_weight(const Conv2dShape& g, int64_t i0, int64_t i1, const float* image, const float* dy, float* sums) {
  const int64_t ow = g.out_w();
  for (int64_t i = i0; i < i1; ++i)
    for (int64_t r = 0; r < g.r; ++r) {
      const int64_t h = i * g.stride_h - g.pad_top + r * g.dilation_h;
      if (h < 0 || h >= g.h) continue;
      for (int64_t s = 0; s < g.s; ++s)
        for_channels(g.c, [&](int64_t c, auto channels) {
          Vec sum{};
          for (int64_t j = 0; j < ow; ++j) {
            const int64_t w = j * g.stride_w - g.pad_left + s * g.dilation_w;
            if (w >= 0 && w < g.w)
              sum += channels.get(image + (h * g.w + w) * g.c + c) * channels.get(dy + (i * ow + j) * g.c + c);
          }
          float* const at = sums + (r * g.s + s) * g.c + c;
          channels.put(at, channels.get(at) + sum);
        });
    }
}

}  // namespace

void depthwise_forward(const Conv2dShape& g, const float* x, const float* weight, const Epilogue& e, float* y) {
  const int64_t oh = g.out_h(), ow = g.out_w();
  const bool stride2 = is_depthwise_stride2(g);
  if (is_plain_3x3(g) || (stride2 && (is_far(g.n * g.h * g.w * g.c) || g.c >= kTileChannels)))
    return walk({g.h, g.w, g.c, oh, ow, g.pad_top, g.pad_left}, g.stride_h, g.n, x, weight, false, e, y);
  if (stride2) return depthwise_stride2_forward(g, x, weight, e, y);
#pragma omp parallel for schedule(static)
  for (int64_t line = 0; line < g.n * oh; ++line) {
    const int64_t n = line / oh, top = line % oh * g.stride_h - g.pad_top;
    for_channels(g.c, [&](int64_t c, auto channels) {
      for (int64_t j = 0; j < ow; ++j) {
        Vec sum = e.bias ? channels.get(e.bias + c) : Vec{};
        for (int64_t r = 0; r < g.r; ++r) {
          const int64_t h = top + r * g.dilation_h;
          if (h < 0 || h >= g.h) continue;
          for (int64_t s = 0; s < g.s; ++s) {
            const int64_t w = j * g.stride_w - g.pad_left + s * g.dilation_w;
            if (w < 0 || w >= g.w) continue;
            sum +=
                channels.get(x + ((n * g.h + h) * g.w + w) * g.c + c) * channels.get(weight + (r * g.s + s) * g.c + c);
          }
        }
        if (e.relu) sum = sum < Vec{} ? Vec{} : sum;
        channels.put(y + (line * ow + j) * g.c + c, sum);
      }
    });
    if (e.finish) e.finish->wrote_pixels(line * ow, ow, g.c);
  }
}

void depthwise_backward_data(const Conv2dShape& g, const float* dy, const float* weight, const float* bias, float* dx) {
  const int64_t oh = g.out_h(), ow = g.out_w();
  if (is_plain_3x3(g))
    return walk({oh, ow, g.c, g.h, g.w, 2 - g.pad_top, 2 - g.pad_left}, 1, g.n, dy, weight, true,
                {bias, false, nullptr}, dx);
  if (is_depthwise_stride2(g)) return depthwise_stride2_backward_data(g, dy, weight, bias, dx);
#pragma omp parallel for schedule(static)
  for (int64_t line = 0; line < g.n * g.h; ++line) {
    const int64_t n = line / g.h, h = line % g.h;
    for_channels(g.c, [&](int64_t c, auto channels) {
      for (int64_t w = 0; w < g.w; ++w) {
        Vec sum = bias ? channels.get(bias + c) : Vec{};
        for (int64_t r = 0; r < g.r; ++r) {
          const int64_t top = h + g.pad_top - r * g.dilation_h, i = top / g.stride_h;
          if (top < 0 || top % g.stride_h || i >= oh) continue;
          for (int64_t s = 0; s < g.s; ++s) {
            const int64_t left = w + g.pad_left - s * g.dilation_w, j = left / g.stride_w;
            if (left < 0 || left % g.stride_w || j >= ow) continue;
            sum +=
                channels.get(dy + ((n * oh + i) * ow + j) * g.c + c) * channels.get(weight + (r * g.s + s) * g.c + c);
          }
        }
        channels.put(dx + (line * g.w + w) * g.c + c, sum);
      }
    });
  }
}

void depthwise_backward_weight(const Conv2dShape& g, const float* dy, const float* x, float* dweight) {
  const int64_t oh = g.out_h(), ow = g.out_w(), size = g.r * g.s * g.c;
  if (g.n <= 0 || oh <= 0 || ow <= 0) return;
  const int64_t parts = (oh + kPartRows - 1) / kPartRows, items = g.n * parts;
  float* const sums = static_cast<float*>(scratch(14, sizeof(float) * static_cast<size_t>(items * size)));
  const Walk k{g.h, g.w, g.c, oh, ow, g.pad_top, g.pad_left};
  const bool far = is_far(g.n * g.h * g.w * g.c);
#pragma omp parallel
  {
#pragma omp for schedule(static)
    for (int64_t item = 0; item < items; ++item) {
      const int64_t n = item / parts, i0 = item % parts * kPartRows, i1 = i0 + kPartRows < oh ? i0 + kPartRows : oh;
      const float *image = x + n * g.h * g.w * g.c, *grad = dy + n * oh * ow * g.c;
      float* const mine = sums + item * size;
      std::memset(mine, 0, sizeof(float) * static_cast<size_t>(size));
      if (far && (is_plain_3x3(g) || is_depthwise_stride2(g)))
        depthwise_tile_weight(k, g.stride_h, i0, i1, image, grad, mine);
      else if (is_plain_3x3(g))
        walk_weight(k, i0, i1, image, grad, mine);
      else if (is_depthwise_stride2(g))
        depthwise_stride2_weight_rows(k, i0, i1, image, grad, mine);
      else
        rows_weight(g, i0, i1, image, grad, mine);
    }
#pragma omp for schedule(static)
    for (int64_t begin = 0; begin < size; begin += kSumBlock) {
      const int64_t count = size - begin < kSumBlock ? size - begin : kSumBlock;
      double total[kSumBlock] = {};
      for (int64_t item = 0; item < items; ++item)
        for (int64_t i = 0; i < count; ++i) total[i] += static_cast<double>(sums[item * size + begin + i]);
      for (int64_t i = 0; i < count; ++i) dweight[begin + i] += static_cast<float>(total[i]);
    }
  }
}

}  // namespace medmpi::MEDMPI_ISA
