// 3x3 convolution by Winograd's F(4x4, 3x3): 36 products where a direct one takes 144, over tiles of 4x4 outputs; and
// 5x5 by F(2x2, 5x5): 36 for 100, over 2x2 outputs of the same 6x6 inputs.
// A block of tiles is transformed to V[point][16 channels][tile][16]; then, for two vectors of output channels at a
// time, 36 small matrix products with the transformed weights U[point][channel][output channel] give
// M[point][tile][output channel], which is transformed back while it is in the second-level cache. Small U are computed
// once for all; large ones would cost more to write and to read than to compute, so they are made in pieces that stay
// in cache, for each block. Strides between points are padded, or 36 streams would meet in one cache set. The gradient
// for the input is the same convolution with turned weights.
#include "cpu/conv2d_winograd.h"

#include "cpu/conv2d_tile.h"
#include "cpu/sizes.h"
#include "cpu/threads.h"
#include "cpu/tile.h"
#include "cpu/winograd.h"
#include "ops/scratch.h"
#include "ops/weight_cache.h"

namespace medmpi::MEDMPI_ISA {
namespace {

// Scratch slots. Of the calling thread: all transformed weights, turned weights, steps. Of each thread: the rest.
constexpr int kSlotWeight = 0, kSlotLists = 1, kSlotTurned = 4;
constexpr int kSlotInput = 2, kSlotProduct = 3, kSlotPiece = 5;

constexpr int64_t kPoints = kWinogradInputs * kWinogradInputs;
constexpr int64_t kWide = 2 * kLanes;
constexpr int64_t kPadding = 16;              // floats between points
constexpr int64_t kPieceChannels = 64;        // input channels of weights made on the fly
constexpr int64_t kWeightBytes = 1536 << 10;  // of transformed weights that are kept
constexpr int64_t kBlockBytes = 1280 << 10;   // of a block's transformed tiles
constexpr int64_t kLeastTiles = 56;           // of a block for which weights are made on the fly
constexpr int64_t kAhead = 6;  // input channels: weights of taps lie too far apart for hardware to foresee

struct Problem {
  int64_t n, h, w, c, k, oh, ow, pad_top, pad_left;
  const float *x, *weight, *bias;
  float* y;
  int64_t weight_tap, weight_row, weight_wide;  // floats from one tap, input channel, kWide output channels to the next
  bool relu;
  const Finish* finish;
  const float* before;  // as y, added; or null
  // derived
  int64_t out;                                     // outputs of a tile in one dimension
  int64_t tiles_h, tiles_w, tiles, blocks, depth;  // blocks of 16 channels; channels of a piece of weights
  const Step* steps;
};

struct Position {
  int64_t image, row, column;  // of a tile's first output
};

Position position(const Problem& p, int64_t tile) {
  const int64_t each = p.tiles_h * p.tiles_w, rest = tile % each;
  return {tile / each, rest / p.tiles_w * p.out, rest % p.tiles_w * p.out};
}

/// V of one tile, for kLanes channels that start at `x`.
template <bool Inside>
MEDMPI_INLINE void transform_tile(const Problem& p, const float* x, int64_t top, int64_t left, int64_t channels,
                                  float* v, int64_t point) {
  Vec rows[6][6];
#pragma GCC unroll 6
  for (int j = 0; j < 6; ++j) {
    Vec d[6], o[6];
#pragma GCC unroll 6
    for (int i = 0; i < 6; ++i) {
      const float* at = x + (i * p.w + j) * p.c;
      if constexpr (Inside) {
        d[i] = load(at);
      } else {
        const bool there = top + i >= 0 && top + i < p.h && left + j >= 0 && left + j < p.w;
        d[i] = !there ? Vec{} : channels >= kLanes ? load(at) : load_part(at, channels);
      }
    }
    winograd_input(d, o);
#pragma GCC unroll 6
    for (int i = 0; i < 6; ++i) rows[i][j] = o[i];
  }
#pragma GCC unroll 6
  for (int i = 0; i < 6; ++i) {
    Vec o[6];
    winograd_input(rows[i], o);
#pragma GCC unroll 6
    for (int j = 0; j < 6; ++j) store(v + (i * 6 + j) * point, o[j]);
  }
}

void transform_input(const Problem& p, int64_t first, int64_t count, int64_t capacity, float* v, int64_t point) {
  for (int64_t t = 0; t < count; ++t) {
    const Position at = position(p, first + t);
    const int64_t top = at.row - p.pad_top, left = at.column - p.pad_left;
    const bool inside = top >= 0 && left >= 0 && top + 6 <= p.h && left + 6 <= p.w;
    const float* x = p.x + ((at.image * p.h + top) * p.w + left) * p.c;
    for (int64_t c = 0; c < p.c; c += kLanes) {
      float* out = v + (c / kPack * capacity + t) * kPack + c % kPack;
      if (inside && c + kLanes <= p.c)
        transform_tile<true>(p, x + c, top, left, kLanes, out, point);
      else
        transform_tile<false>(p, x + c, top, left, p.c - c, out, point);
    }
  }
}

/// U of the input channels [c0, c0 + count) for the output channels from k0 on, in rows of `lanes`.
template <int Taps>
__attribute__((noinline)) void transform_weight(const Problem& p, int64_t c0, int64_t count, int64_t k0, int64_t lanes,
                                                float* u, int64_t point) {
  for (int64_t c = 0; c < count; ++c)
    for (int64_t k = 0; k < lanes; k += kLanes) {
      const float* w = p.weight + k0 / kWide * p.weight_wide + (c0 + c) * p.weight_row + k;
      const int64_t there = p.k - k0 - k;
      for (int tap = 0; tap < Taps * Taps; ++tap) __builtin_prefetch(w + kAhead * p.weight_row + tap * p.weight_tap);
      Vec rows[Taps][6];
#pragma GCC unroll 5
      for (int i = 0; i < Taps; ++i) {
        Vec g[Taps];
#pragma GCC unroll 5
        for (int j = 0; j < Taps; ++j) {
          const float* at = w + (i * Taps + j) * p.weight_tap;
          g[j] = there >= kLanes ? load(at) : load_part(at, there);
        }
        winograd_filter(g, rows[i]);
      }
      float* out = u + c * lanes + k;
#pragma GCC unroll 6
      for (int j = 0; j < 6; ++j) {
        Vec g[Taps], o[6];
#pragma GCC unroll 5
        for (int i = 0; i < Taps; ++i) g[i] = rows[i][j];
        winograd_filter(g, o);
#pragma GCC unroll 6
        for (int i = 0; i < 6; ++i) store(out + (i * 6 + j) * point, o[i]);
      }
    }
}

/// The outputs of a block's tiles for `lanes` output channels from k0 on.
template <int Out>
void transform_output(const Problem& p, int64_t first, int64_t count, int64_t k0, int64_t lanes, const float* m,
                      int64_t point) {
  for (int64_t t = 0; t < count; ++t) {
    const Position at = position(p, first + t);
    const int64_t rows = smaller(Out, p.oh - at.row), columns = smaller(Out, p.ow - at.column);
    for (int64_t k = 0; k < lanes; k += kLanes) {
      const int64_t there = p.k - k0 - k;
      const Vec bias = !p.bias ? Vec{} : there >= kLanes ? load(p.bias + k0 + k) : load_part(p.bias + k0 + k, there);
      const float* in = m + t * lanes + k;
      const int64_t begin = ((at.image * p.oh + at.row) * p.ow + at.column) * p.k + k0 + k;
      float* y = p.y + begin;
      if (p.before)
        for (int64_t i = 0; i < rows; ++i)
          for (int64_t j = 0; j < columns; ++j) __builtin_prefetch(p.before + begin + (i * p.ow + j) * p.k);
      Vec half[Out][6];
#pragma GCC unroll 6
      for (int j = 0; j < 6; ++j) {
        Vec a[6], o[Out];
#pragma GCC unroll 6
        for (int i = 0; i < 6; ++i) a[i] = load(in + (i * 6 + j) * point);
        winograd_output(a, o);
#pragma GCC unroll 4
        for (int i = 0; i < Out; ++i) half[i][j] = o[i];
      }
#pragma GCC unroll 4
      for (int i = 0; i < Out; ++i) {
        Vec o[Out];
        winograd_output(half[i], o);
#pragma GCC unroll 4
        for (int j = 0; j < Out; ++j) {
          o[j] += bias;
          if (p.relu) o[j] = o[j] < Vec{} ? Vec{} : o[j];
          if (i >= rows || j >= columns) continue;
          float* to = y + (i * p.ow + j) * p.k;
          if (p.before) {
            const float* from = p.before + begin + (i * p.ow + j) * p.k;
            o[j] += there >= kLanes ? load(from) : load_part(from, there);
          }
          if (there >= kLanes)
            store(to, o[j]);
          else
            store_part(to, o[j], there);
        }
      }
    }
  }
}

/// Says which outputs transform_output has written.
void report(const Problem& p, int64_t first, int64_t count, int64_t channels) {
  int64_t band = -1, values = 0;
  for (int64_t t = 0; t < count; ++t) {
    const Position at = position(p, first + t);
    const int64_t next = p.finish->band(at.image, at.row);
    if (next != band) {
      p.finish->wrote_values(band, values);
      band = next, values = 0;
    }
    values += smaller(p.out, p.oh - at.row) * smaller(p.out, p.ow - at.column) * channels;
  }
  p.finish->wrote_values(band, values);
}

/// How the work is cut.
struct Cut {
  int64_t capacity;     // tiles of a block
  int64_t v_point;      // floats from one point of V to the next
  const float* weight;  // all U, or null: made on the fly
  bool lone;            // U come from memory as fast as they are used
};

int64_t lanes_from(const Problem& p, int64_t k0) { return p.k - k0 > kLanes ? kWide : kLanes; }

/// Floats of U of one piece.
int64_t piece(int64_t channels, int64_t lanes) { return kPoints * (channels * lanes + kPadding); }

/// Floats of U before the output channels k0.
int64_t weight_offset(const Problem& p, int64_t k0) {
  return k0 / kWide * (p.c / p.depth * piece(p.depth, kWide) + (p.c % p.depth ? piece(p.c % p.depth, kWide) : 0));
}

/// One block of tiles for the output channels [k_begin, k_end).
template <int Taps>
void run_block(const Problem& p, const Cut& cut, int64_t first, int64_t count, int64_t k_begin, int64_t k_end) {
  float* v = scratch_floats(kSlotInput, kPoints * cut.v_point);
  transform_input(p, first, count, cut.capacity, v, cut.v_point);
  for (int64_t k0 = k_begin; k0 < k_end; k0 += kWide) {
    const int64_t lanes = lanes_from(p, k0), m_point = cut.capacity * lanes + kPadding;
    float* m = scratch_floats(kSlotProduct, kPoints * (cut.capacity * kWide + kPadding));
    const float* u = cut.weight ? cut.weight + weight_offset(p, k0) : nullptr;
    for (int64_t c0 = 0; c0 < p.c; c0 += p.depth) {
      const int64_t channels = smaller(p.depth, p.c - c0), u_point = channels * lanes + kPadding;
      if (!cut.weight) {
        float* made = scratch_floats(kSlotPiece, piece(p.depth, kWide));
        transform_weight<Taps>(p, c0, channels, k0, lanes, made, u_point);
        u = made;
      }
      for (int64_t point = 0; point < kPoints; ++point) {
        const float* const now = u + point * u_point;
        multiply_rows(p.steps + c0 / kPack, channels, c0 == 0, count, lanes, v + point * cut.v_point, now,
                      cut.lone ? now + 2 * u_point : nullptr, m + point * m_point);
      }
      u += piece(channels, lanes);
    }
    transform_output<kWinogradInputs + 1 - Taps>(p, first, count, k0, lanes, m, m_point);
    if (p.finish) report(p, first, count, smaller(lanes, p.k - k0));
  }
}

template <int Taps>
void run(Problem& p) {
  p.out = kWinogradInputs + 1 - Taps;
  p.tiles_h = ceil_div(p.oh, p.out), p.tiles_w = ceil_div(p.ow, p.out), p.tiles = p.n * p.tiles_h * p.tiles_w;
  if (p.tiles == 0) return;
  p.blocks = ceil_div(p.c, kPack);
  const int64_t wide = ceil_div(p.k, kWide);
  const bool keep = weights_are_kept() || kPoints * p.c * p.k * 4 <= kWeightBytes;
  p.depth = smaller(keep ? 2 * kPieceChannels : kPieceChannels, p.c);
  Cut cut{};
  const int64_t most = (Taps == 3 ? kBlockBytes : kBlockBytes / 2) / (kPoints * (p.blocks * kPack + kWide) * 4);
  cut.capacity = larger(most / kTilePixels * kTilePixels, keep ? 2 * kTilePixels : kLeastTiles);
  const auto [count, parts] = share_tiles(p.tiles, cut.capacity, wide, keep);
  cut.capacity = ceil_div(p.tiles, count);
  cut.v_point = p.blocks * cut.capacity * kPack + kPadding;
  Step* steps = static_cast<Step*>(scratch(kSlotLists, static_cast<size_t>(p.blocks) * sizeof(Step)));
  for (int64_t b = 0; b < p.blocks; ++b)
    steps[b] = {b * cut.capacity * kPack, smaller(kPack, p.c - b * kPack), 0, b * kPack, b * kPack};
  p.steps = steps;
  if (keep) {
    bool ready;
    float* all = packed_weights(kSlotWeight, weight_offset(p, wide * kWide), ready);
    const int64_t pieces = ready ? 0 : ceil_div(p.c, p.depth);
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < wide * pieces; ++i) {
      const int64_t k0 = i / pieces * kWide, c0 = i % pieces * p.depth, channels = smaller(p.depth, p.c - c0);
      const int64_t lanes = lanes_from(p, k0);
      transform_weight<Taps>(p, c0, channels, k0, lanes,
                             all + weight_offset(p, k0) + c0 / p.depth * piece(p.depth, lanes),
                             channels * lanes + kPadding);
    }
    cut.weight = all;
    cut.lone = p.tiles <= 5 * kTilePixels && 2 * p.tiles >= kTilePixels;
  }
#pragma omp parallel for schedule(dynamic, 1)
  for (int64_t item = 0; item < count * parts; ++item) {
    const int64_t block = item / parts, part = item % parts, first = block * cut.capacity;
    if (first >= p.tiles) continue;
    run_block<Taps>(p, cut, first, smaller(cut.capacity, p.tiles - first), wide * part / parts * kWide,
                    smaller(wide * (part + 1) / parts * kWide, p.k));
  }
}

}  // namespace

bool conv2d_winograd_pays(const Conv2dShape& g) {
  if (!g.fits_winograd() || g.c < 16 || g.k < 16 || (g.r == 5 && g.c * g.k < 512)) return false;
  // outputs kept of those computed, for the output and for the gradient of the input alike
  const int64_t out = kWinogradInputs + 1 - g.r, least = g.r == 3 ? 4 : 7;  // tenths; F(2x2, 5x5) saves less
  const auto useful = [=](int64_t rows, int64_t columns) {
    return 10 * rows * columns >= least * (out * out * ceil_div(rows, out) * ceil_div(columns, out));
  };
  return useful(g.out_h(), g.out_w()) && useful(g.h, g.w);
}

void conv2d_winograd_forward(const Conv2dShape& g, const float* x, const float* weight, const Epilogue& e, float* y) {
  Problem p{};
  p.n = g.n, p.h = g.h, p.w = g.w, p.c = g.c, p.k = g.k, p.oh = g.out_h(), p.ow = g.out_w();
  p.pad_top = g.pad_top, p.pad_left = g.pad_left;
  p.x = x, p.weight = weight, p.bias = e.bias, p.y = y, p.relu = e.relu, p.finish = e.finish;
  p.weight_tap = g.c * g.k, p.weight_row = g.k, p.weight_wide = kWide;
  g.r == 3 ? run<3>(p) : run<5>(p);
}

void conv2d_winograd_backward_data(const Conv2dShape& g, const float* dy, const float* weight, const float* bias,
                                   const float* before, float* dx) {
  // turned so that the weights of a group of output channels lie together: [kWide outputs][tap][k][kWide]
  const int64_t wide = ceil_div(g.c, kWide), tap_size = g.k * kWide, taps = g.r * g.s;
  float* turned = scratch_floats(kSlotTurned, wide * taps * tap_size);
#pragma omp parallel for schedule(static)
  for (int64_t task = 0; task < taps * wide; ++task) {
    const int64_t tap = task / wide, c0 = task % wide * kWide;
    pack_transposed(weight + (tap * g.c + c0) * g.k, g.k, smaller(kWide, g.c - c0), g.k,
                    turned + task % wide * taps * tap_size + (taps - 1 - tap) * tap_size, kWide, kWide);
  }
  Problem p{};
  p.n = g.n, p.h = g.out_h(), p.w = g.out_w(), p.c = g.k, p.k = g.c, p.oh = g.h, p.ow = g.w;
  p.pad_top = g.r - 1 - g.pad_top, p.pad_left = g.s - 1 - g.pad_left;
  p.x = dy, p.weight = turned, p.bias = bias, p.y = dx, p.weight_tap = tap_size, p.weight_row = kWide,
  p.weight_wide = taps * tap_size, p.before = before;
  g.r == 3 ? run<3>(p) : run<5>(p);
}

}  // namespace medmpi::MEDMPI_ISA
