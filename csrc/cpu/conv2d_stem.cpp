// Convolution of few channels: the first layer of a network. Its sums are short and its output is many times its input,
// so forward is bound by writing: rows of outputs are finished one after the other, in the order they lie. The gradient
// for the input has a product for each tap, whose vectors run along a row of outputs. Rows of x or dx are padded and
// laid out by the remainder of a value's place by stride * channels, so that one tap of neighbouring outputs meets
// neighbouring floats whatever the stride and the channels. A unit of work is a band of rows of one image; each value
// is summed in an order that the shape fixes.
#include "cpu/conv2d_stem.h"

#include "cpu/simd.h"
#include "cpu/sizes.h"
#include "cpu/threads.h"
#include "cpu/tile.h"
#include "ops/scratch.h"

namespace medmpi::MEDMPI_ISA {
namespace {

// Scratch slots. Of the calling thread: packed weights, places of the taps. Of each thread: packed rows, packed dy.
constexpr int kSlotWeight = 0, kSlotTaps = 1, kSlotRows = 2, kSlotGradient = 3;

constexpr int kPixels = kLanes == 16 ? 14 : 6;  // of a tile: two vectors of sums each, two of weights and one value
constexpr int64_t kWide = 2 * kLanes;           // output channels of a group
constexpr int64_t kAheadSteps = 32;             // steps of a tile in which a line of y comes from memory
constexpr int64_t kUnitPixels = 2048;           // outputs of a unit

struct Work {
  const int64_t* taps;  // floats from an output's place in packed x
  int64_t depth;
  const float* weight;  // a row of vectors for each tap
  const float* start;
  int64_t y_pixel;
  int64_t lanes;  // of the last vector that exist
  int64_t ahead;  // floats by which lines of y are asked for before they are written
  bool relu;
};

using ForwardTile = void (*)(const Work& work, const float* x, float* y);

/// `Pixels` neighbouring outputs by `Vectors` vectors of channels.
template <int Pixels, int Vectors>
__attribute__((noinline)) void stem_tile(const Work& work, const float* x, float* y) {
  Vec sum[Pixels][Vectors];
#pragma GCC unroll 14
  for (int p = 0; p < Pixels; ++p)
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) {
      sum[p][v] = load(work.start + v * kLanes);
      __builtin_prefetch(y + work.ahead + p * work.y_pixel + v * kLanes, 1);
    }
  const float* weight = work.weight;
  for (int64_t d = 0; d < work.depth; ++d, weight += Vectors * kLanes) {
    const float* const in = x + work.taps[d];
    Vec w[Vectors];
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) w[v] = load(weight + v * kLanes);
#pragma GCC unroll 14
    for (int p = 0; p < Pixels; ++p) {
      const Vec value = broadcast(in[p]);
#pragma GCC unroll 2
      for (int v = 0; v < Vectors; ++v) sum[p][v] += value * w[v];
    }
  }
  if (work.relu)
#pragma GCC unroll 14
    for (int p = 0; p < Pixels; ++p)
#pragma GCC unroll 2
      for (int v = 0; v < Vectors; ++v) sum[p][v] = sum[p][v] < Vec{} ? Vec{} : sum[p][v];
  const bool whole = work.lanes == kLanes;
#pragma GCC unroll 14
  for (int p = 0; p < Pixels; ++p, y += work.y_pixel) {
    if constexpr (Vectors == 2) store(y, sum[p][0]);
    if (whole)
      store(y + (Vectors - 1) * kLanes, sum[p][Vectors - 1]);
    else
      store_part(y + (Vectors - 1) * kLanes, sum[p][Vectors - 1], work.lanes);
  }
}

template <int Vectors>
ForwardTile forward_tile(int64_t pixels) {
#if defined(__AVX512F__)
  static constexpr ForwardTile tiles[] = {stem_tile<1, Vectors>,  stem_tile<2, Vectors>,  stem_tile<3, Vectors>,
                                          stem_tile<4, Vectors>,  stem_tile<5, Vectors>,  stem_tile<6, Vectors>,
                                          stem_tile<7, Vectors>,  stem_tile<8, Vectors>,  stem_tile<9, Vectors>,
                                          stem_tile<10, Vectors>, stem_tile<11, Vectors>, stem_tile<12, Vectors>,
                                          stem_tile<13, Vectors>, stem_tile<14, Vectors>};
#else
  static constexpr ForwardTile tiles[] = {stem_tile<1, Vectors>, stem_tile<2, Vectors>, stem_tile<3, Vectors>,
                                          stem_tile<4, Vectors>, stem_tile<5, Vectors>, stem_tile<6, Vectors>};
#endif
  return tiles[pixels - 1];
}

/// Packed rows of x: for each remainder by `period` a line of `width` values, of places period * j + remainder.
struct Layout {
  int64_t period, width, shift;  // shift: places of the padding on the left
  int64_t row() const { return period * width; }
};

Layout layout_of(const Conv2dShape& g) {
  const int64_t period = g.stride_w * g.c, shift = g.pad_left * g.c;
  // a vector of outputs may end beyond the last one, and so may the image
  const int64_t outputs = ceil_div(g.out_w(), kWide) * kWide + (g.s * g.c - 1) / period;
  return {period, larger(outputs, ceil_div(shift + g.w * g.c, period)), shift};
}

/// For each tap how far from an output's place in packed rows it lies.
const int64_t* find_taps(const Conv2dShape& g, const Layout& layout) {
  const int64_t span = g.s * g.c;
  int64_t* const taps = static_cast<int64_t*>(scratch(kSlotTaps, static_cast<size_t>(g.r * span) * sizeof(int64_t)));
  for (int64_t r = 0; r < g.r; ++r)
    for (int64_t l = 0; l < span; ++l)
      taps[r * span + l] = r * g.dilation_h * layout.row() + l % layout.period * layout.width + l / layout.period;
  return taps;
}

/// Values [begin, end) of the line of remainder m lie inside a row of `size` values, the first of all at `first`.
struct Inside {
  int64_t first, begin, end;
};
Inside inside(const Layout& layout, int64_t m, int64_t size) {
  const int64_t first = m - layout.shift;
  const int64_t begin = first < 0 ? smaller(ceil_div(-first, layout.period), layout.width) : 0;
  const int64_t end = size > first ? smaller(ceil_div(size - first, layout.period), layout.width) : 0;
  return {first, begin, larger(begin, end)};
}

/// One row of x, null for padding.
void pack_row(const Layout& layout, const float* x, int64_t size, float* to) {
  for (int64_t m = 0; m < layout.period; ++m, to += layout.width) {
    const Inside in = inside(layout, m, x ? size : 0);
    for (int64_t j = 0; j < in.begin; ++j) to[j] = 0.0f;
#pragma GCC unroll 8
    for (int64_t j = in.begin; j < in.end; ++j) to[j] = x[in.first + j * layout.period];
    for (int64_t j = in.end; j < layout.width; ++j) to[j] = 0.0f;
  }
}

/// The way back, plus a bias.
void unpack_row(const Layout& layout, const float* from, const float* bias, int64_t channels, int64_t size, float* x) {
  for (int64_t m = 0; m < layout.period; ++m, from += layout.width) {
    const Inside in = inside(layout, m, size);
    const float add = bias ? bias[m % channels] : 0.0f;
#pragma GCC unroll 8
    for (int64_t j = in.begin; j < in.end; ++j) x[in.first + j * layout.period] = from[j] + add;
  }
}

/// Weights as [kWide output channels][tap][vectors], zeros beyond the last channel.
void pack_weight(const Conv2dShape& g, int64_t depth, const float* weight, float* to) {
  for (int64_t k0 = 0; k0 < g.k; k0 += kWide) {
    const int64_t lanes = g.k - k0 > kLanes ? kWide : kLanes;
    for (int64_t d = 0; d < depth; ++d, to += lanes)
      for (int64_t k = 0; k < lanes; ++k) to[k] = k0 + k < g.k ? weight[d * g.k + k0 + k] : 0.0f;
  }
}

using GradientTile = void (*)(int64_t depth, const float* weight, const float* dy, const int64_t* taps, float* rows);

/// Adds the products of `Taps` taps with two vectors of neighbouring outputs to the rows that they meet.
template <int Taps>
__attribute__((noinline)) void gradient_tile(int64_t depth, const float* weight, const float* dy, const int64_t* taps,
                                             float* rows) {
  Vec sum[Taps][2] = {};
  tile_multiply(sum, depth, weight, kPitch, dy, kPanel);
#pragma GCC unroll 14
  for (int t = 0; t < Taps; ++t)
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v) {
      float* const at = rows + taps[t] + v * kLanes;
      store(at, load(at) + sum[t][v]);
    }
}

GradientTile gradient_tile_of(int64_t taps) {
#if defined(__AVX512F__)
  static constexpr GradientTile tiles[] = {gradient_tile<1>,  gradient_tile<2>,  gradient_tile<3>,  gradient_tile<4>,
                                           gradient_tile<5>,  gradient_tile<6>,  gradient_tile<7>,  gradient_tile<8>,
                                           gradient_tile<9>,  gradient_tile<10>, gradient_tile<11>, gradient_tile<12>,
                                           gradient_tile<13>, gradient_tile<14>};
#else
  static constexpr GradientTile tiles[] = {gradient_tile<1>, gradient_tile<2>, gradient_tile<3>,
                                           gradient_tile<4>, gradient_tile<5>, gradient_tile<6>};
#endif
  return tiles[taps - 1];
}

/// Rows of a band, so that there are units enough for all threads.
int64_t band_rows(int64_t images, int64_t rows, int64_t most) {
  const int64_t threads = omp_get_max_threads();
  if (images < 4 * threads) most = smaller(most, larger(1, images * rows / (4 * threads)));
  return ceil_div(rows, ceil_div(rows, larger(1, most)));
}

}  // namespace

void conv2d_stem_forward(const Conv2dShape& g, const float* x, const float* weight, const Epilogue& e, float* y) {
  const int64_t oh = g.out_h(), ow = g.out_w(), depth = g.r * g.s * g.c;
  if (g.n <= 0 || oh <= 0 || ow <= 0) return;
  const Layout layout = layout_of(g);
  const int64_t* const taps = find_taps(g, layout);
  const int64_t groups = ceil_div(g.k, kWide), k_padded = ceil_div(g.k, kLanes) * kLanes;
  float* const packed =
      static_cast<float*>(scratch(kSlotWeight, static_cast<size_t>((depth + 1) * k_padded) * sizeof(float)));
  pack_weight(g, depth, weight, packed);
  float* const start = packed + depth * k_padded;
  for (int64_t k = 0; k < k_padded; ++k) start[k] = e.bias && k < g.k ? e.bias[k] : 0.0f;

  const int64_t rows = band_rows(g.n, oh, kUnitPixels / ow), bands = ceil_div(oh, rows);
  const int64_t tiles = ceil_div(ow, kPixels), columns = ceil_div(ow, tiles);
  const int64_t tall = (rows - 1) * g.stride_h + (g.r - 1) * g.dilation_h + 1;
#pragma omp parallel for schedule(dynamic, 1)
  for (int64_t unit = 0; unit < g.n * bands; ++unit) {
    const int64_t n = unit / bands, i0 = unit % bands * rows, i1 = smaller(i0 + rows, oh);
    float* const lines =
        static_cast<float*>(scratch(kSlotRows, static_cast<size_t>(tall * layout.row()) * sizeof(float)));
    for (int64_t q = 0; q < tall; ++q) {
      const int64_t h = i0 * g.stride_h - g.pad_top + q;
      const float* const row = h >= 0 && h < g.h ? x + (n * g.h + h) * g.w * g.c : nullptr;
      pack_row(layout, row, g.w * g.c, lines + q * layout.row());
    }
    for (int64_t i = i0; i < i1; ++i)
      for (int64_t o = 0; o < groups; ++o) {
        const int64_t width = smaller(kWide, g.k - o * kWide), vectors = ceil_div(width, kLanes);
        const Work work{taps,
                        depth,
                        packed + o * kWide * depth,
                        start + o * kWide,
                        g.k,
                        width - (vectors - 1) * kLanes,
                        ceil_div(kAheadSteps, depth) * columns * g.k,
                        e.relu};
        const ForwardTile tile = vectors == 2 ? forward_tile<2>(columns) : forward_tile<1>(columns);
        const float* const in = lines + (i - i0) * g.stride_h * layout.row();
        float* const out = y + (n * oh + i) * ow * g.k + o * kWide;
        for (int64_t t = 0; t < tiles; ++t) {
          const int64_t j = smaller(t * columns, ow - columns);  // the last tile computes some pixels again
          tile(work, in + j, out + j * g.k);
        }
      }
    if (e.finish) e.finish->wrote_pixels((n * oh + i0) * ow, (i1 - i0) * ow, g.k);
  }
}

void conv2d_stem_backward_data(const Conv2dShape& g, const float* dy, const float* weight, const float* bias,
                               float* dx) {
  const int64_t oh = g.out_h(), ow = g.out_w(), depth = g.r * g.s * g.c;
  if (g.n <= 0 || g.h <= 0 || g.w <= 0) return;
  const Layout layout = layout_of(g);
  const int64_t* const taps = find_taps(g, layout);
  const int64_t tiles = ceil_div(depth, kTileRows), tile_size = g.k * kPitch, reach = (g.r - 1) * g.dilation_h;
  float* const packed =
      static_cast<float*>(scratch(kSlotWeight, static_cast<size_t>(tiles * tile_size) * sizeof(float)));
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t tap = depth * t / tiles, count = depth * (t + 1) / tiles - tap;
    pack_transposed(weight + tap * g.k, g.k, count, g.k, packed + t * tile_size, kPitch, kPitch);
  }
  const int64_t rows = band_rows(g.n, g.h, g.h), bands = ceil_div(g.h, rows);
  const int64_t tall = rows + 2 * reach;  // with rows that belong to other bands
#pragma omp parallel for schedule(dynamic, 1)
  for (int64_t unit = 0; unit < g.n * bands; ++unit) {
    const int64_t n = unit / bands, h0 = unit % bands * rows, h1 = smaller(h0 + rows, g.h);
    float* const lines =
        static_cast<float*>(scratch(kSlotRows, static_cast<size_t>(tall * layout.row()) * sizeof(float)));
    float* const panel = static_cast<float*>(scratch(kSlotGradient, static_cast<size_t>(g.k * kPanel) * sizeof(float)));
    std::memset(lines, 0, static_cast<size_t>(tall * layout.row()) * sizeof(float));
    const int64_t top = h0 + g.pad_top - reach;  // the first padded row that an output that meets the band reads
    const int64_t i0 = larger(0, top > 0 ? ceil_div(top, g.stride_h) : 0);
    const int64_t i1 = smaller(oh, h1 - 1 + g.pad_top < 0 ? 0 : (h1 - 1 + g.pad_top) / g.stride_h + 1);
    for (int64_t i = i0; i < i1; ++i) {
      float* const row = lines + (i * g.stride_h - top) * layout.row();
      for (int64_t j = 0; j < ow; j += kPanel) {
        pack_transposed(dy + ((n * oh + i) * ow + j) * g.k, g.k, smaller(kPanel, ow - j), g.k, panel, kPanel, kPanel);
        for (int64_t t = 0; t < tiles; ++t) {
          const int64_t tap = depth * t / tiles, count = depth * (t + 1) / tiles - tap;
          gradient_tile_of(count)(g.k, packed + t * tile_size, panel, taps + tap, row + j);
        }
      }
    }
    for (int64_t h = h0; h < h1; ++h)
      unpack_row(layout, lines + (h + g.pad_top - top) * layout.row(), bias, g.c, g.w * g.c,
                 dx + (n * g.h + h) * g.w * g.c);
  }
}

}  // namespace medmpi::MEDMPI_ISA
