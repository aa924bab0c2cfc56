// 3x3 convolution of stride 2 by the fast algorithm of stride2.h: 25 products where a direct one takes 36. A block of
// tiles is transformed to V[16 channels][point and tile][16]; then, for two vectors of output channels at a time,
// matrix products with the transformed weights U[class][channel][output channel] give M[point and tile][output
// channel], which is transformed back while it is in the second-level cache. Small U are computed once for all; large
// ones are made in pieces that stay in cache, for each block.
#include "cpu/conv2d_stride2.h"

#include "cpu/conv2d_tile.h"
#include "cpu/sizes.h"
#include "cpu/stride2.h"
#include "cpu/threads.h"
#include "cpu/tile.h"
#include "ops/scratch.h"
#include "ops/weight_cache.h"

namespace medmpi::MEDMPI_ISA {
namespace {

// Scratch slots. Of the calling thread: all transformed weights, arranged weights, steps. Of each thread: the rest.
constexpr int kSlotWeight = 0, kSlotLists = 1, kSlotArranged = 4;
constexpr int kSlotInput = 2, kSlotProduct = 3, kSlotPiece = 5;

constexpr int64_t kWide = 2 * kLanes;
constexpr int64_t kPadding = 16;              // floats between classes of weights
constexpr int64_t kPieceChannels = 64;        // input channels of weights made on the fly
constexpr int64_t kWeightBytes = 1536 << 10;  // of transformed weights that are kept
constexpr int64_t kBlockBytes = 768 << 10;    // of a block's transformed tiles
constexpr int64_t kLeastTiles = 40;           // of a block for which weights are made on the fly
constexpr int64_t kLoneTiles = 64;            // for so few kept weights come from memory as fast as they are used

struct Problem {
  int64_t n, h, w, c, k, oh, ow;
  int64_t in_top, in_left, out_top, out_left;  // how far the first tile begins before the input and the output
  const float *x, *weight, *bias;              // weight: as arranged
  float* y;
  bool relu;
  const Finish* finish;
  // derived
  int64_t tiles_h, tiles_w, tiles, blocks, depth;  // blocks of 16 channels; channels of a piece of weights
  const Step* steps;
};

struct Position {
  int64_t image, row, column;
};

Position position(const Problem& p, int64_t tile) {
  const int64_t each = p.tiles_h * p.tiles_w, rest = tile % each;
  return {tile / each, rest / p.tiles_w, rest % p.tiles_w};
}

template <typename Way>
void transform_input(const Problem& p, int64_t first, int64_t count, int64_t block, float* v) {
  constexpr int kIn = Way::kIn;
  const int64_t whole = p.c / kLanes, rest = p.c % kLanes;
  for (int64_t t = 0; t < count; ++t, v += kPack) {
    const Position at = position(p, first + t);
    const int64_t top = at.row * Way::kInStep - p.in_top, left = at.column * Way::kInStep - p.in_left;
    const float* x = p.x + ((at.image * p.h + top) * p.w + left) * p.c;
    const bool inside = top >= 0 && left >= 0 && top + kIn <= p.h && left + kIn <= p.w;
    if (inside) transform_tile<Way>(x, p.w * p.c, p.c, whole, v, count, block);
    for (int64_t c = inside ? whole : 0; c * kLanes < p.c; ++c) {
      float patch[kIn][kIn][kLanes];
      for (int i = 0; i < kIn; ++i)
        for (int j = 0; j < kIn; ++j) {
          const bool there = top + i >= 0 && top + i < p.h && left + j >= 0 && left + j < p.w;
          const float* from = x + (i * p.w + j) * p.c + c * kLanes;
          store(patch[i][j], !there ? Vec{} : c < whole ? load(from) : load_part(from, rest));
        }
      transform_tile<Way>(patch[0][0], kIn * kLanes, kLanes, 1, v + c * kLanes / kPack * block + c * kLanes % kPack,
                          count, block);
    }
  }
}

/// Weights as [kWide output channels][tap][input channel][kWide], zeros beyond the last channel: what one group of
/// output channels takes lies together.
float* arrange(const Problem& p, const float* weight) {
  const int64_t wide = ceil_div(p.k, kWide), size = p.c * kWide;
  float* to = scratch_floats(kSlotArranged, wide * 9 * size);
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < 9 * p.c; ++row)
    for (int64_t o = 0; o < wide; ++o)
      pack_rows(weight + row * p.k + o * kWide, 0, smaller(kWide, p.k - o * kWide), 1, to + (o * 9 * p.c + row) * kWide,
                0, kWide);
  return to;
}

/// The same of the turned filters: output channels are the rows, and the taps are reversed.
float* arrange_turned(const Problem& p, const float* weight) {
  const int64_t wide = ceil_div(p.k, kWide), size = p.c * kWide;
  float* to = scratch_floats(kSlotArranged, wide * 9 * size);
#pragma omp parallel for schedule(static)
  for (int64_t task = 0; task < 9 * wide; ++task) {
    const int64_t tap = task / wide, o = task % wide;
    pack_transposed(weight + (tap * p.k + o * kWide) * p.c, p.c, smaller(kWide, p.k - o * kWide), p.c,
                    to + (o * 9 + 8 - tap) * size, kWide, kWide);
  }
  return to;
}

/// U of the input channels [c0, c0 + count) for the output channels from k0 on, in rows of `lanes`.
__attribute__((noinline)) void transform_weight(const Problem& p, int64_t c0, int64_t count, int64_t k0, int64_t lanes,
                                                float* u, int64_t class_size) {
  const int64_t size = p.c * kWide;
  const float* w = p.weight + k0 / kWide * 9 * size + c0 * kWide;
  for (int64_t c = 0; c < count; ++c, w += kWide)
    for (int64_t k = 0; k < lanes; k += kLanes) {
      Vec rows[3][4];
#pragma GCC unroll 3
      for (int i = 0; i < 3; ++i) {
        Vec g[3];
#pragma GCC unroll 3
        for (int j = 0; j < 3; ++j) g[j] = load(w + (i * 3 + j) * size + k);
        transform_taps(g, rows[i]);
      }
      float* out = u + c * lanes + k;
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        const Vec g[3] = {rows[0][j], rows[1][j], rows[2][j]};
        Vec o[4];
        transform_taps(g, o);
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) store(out + (i * 4 + j) * class_size, o[i]);
      }
    }
}

/// The outputs of a block's tiles for `lanes` output channels from k0 on.
template <typename Way>
void transform_output(const Problem& p, int64_t first, int64_t count, int64_t k0, int64_t lanes, const float* m) {
  constexpr int kOut = Way::kOut;
  for (int64_t t = 0; t < count; ++t, m += lanes) {
    const Position at = position(p, first + t);
    const int64_t top = at.row * kOut - p.out_top, left = at.column * kOut - p.out_left;
    const bool inside = top >= 0 && left >= 0 && top + kOut <= p.oh && left + kOut <= p.ow;
    for (int64_t k = 0; k < lanes && k0 + k < p.k; k += kLanes) {
      const int64_t there = smaller(kLanes, p.k - k0 - k);
      const bool whole = there == kLanes;
      const Vec bias = !p.bias ? Vec{} : whole ? load(p.bias + k0 + k) : load_part(p.bias + k0 + k, there);
      float* y = p.y + ((at.image * p.oh + top) * p.ow + left) * p.k + k0 + k;
      if (inside && whole) {
        transform_products<Way>(m + k, lanes, count, bias, p.relu, y, p.ow * p.k, p.k);
        continue;
      }
      float patch[kOut][kOut][kLanes];
      transform_products<Way>(m + k, lanes, count, bias, p.relu, patch[0][0], kOut * kLanes, kLanes);
      for (int i = 0; i < kOut; ++i)
        for (int j = 0; j < kOut; ++j) {
          if (top + i < 0 || top + i >= p.oh || left + j < 0 || left + j >= p.ow) continue;
          std::memcpy(y + (i * p.ow + j) * p.k, patch[i][j], static_cast<size_t>(there) * sizeof(float));
        }
    }
  }
}

/// Says which outputs of a forward pass transform_output has written.
void report(const Problem& p, int64_t first, int64_t count, int64_t channels) {
  int64_t band = -1, values = 0;
  for (int64_t t = 0; t < count; ++t) {
    const Position at = position(p, first + t);
    const int64_t row = at.row * Forward::kOut, column = at.column * Forward::kOut;
    const int64_t next = p.finish->band(at.image, row);
    if (next != band) {
      p.finish->wrote_values(band, values);
      band = next, values = 0;
    }
    values += smaller(Forward::kOut, p.oh - row) * smaller(Forward::kOut, p.ow - column) * channels;
  }
  p.finish->wrote_values(band, values);
}

int64_t lanes_from(const Problem& p, int64_t k0) { return p.k - k0 > kLanes ? kWide : kLanes; }

/// Floats of U of one piece, and of all before the output channels k0.
int64_t piece(int64_t channels, int64_t lanes) { return kClasses * (channels * lanes + kPadding); }
int64_t weight_offset(const Problem& p, int64_t k0) {
  return k0 / kWide * (p.c / p.depth * piece(p.depth, kWide) + (p.c % p.depth ? piece(p.c % p.depth, kWide) : 0));
}

/// One block of tiles for the output channels [k_begin, k_end). `weight` is all U, or null: made on the fly.
template <typename Way>
void run_block(const Problem& p, int64_t capacity, const float* weight, int64_t first, int64_t count, int64_t k_begin,
               int64_t k_end) {
  float* v = scratch_floats(kSlotInput, p.blocks * all_rows(capacity) * kPack);
  float* m = scratch_floats(kSlotProduct, all_rows(capacity) * kWide);
  const bool lone = weight && p.tiles <= kLoneTiles;
  transform_input<Way>(p, first, count, all_rows(capacity) * kPack, v);
  for (int64_t k0 = k_begin; k0 < k_end; k0 += kWide) {
    const int64_t lanes = lanes_from(p, k0);
    const float* u = weight ? weight + weight_offset(p, k0) : nullptr;
    for (int64_t c0 = 0; c0 < p.c; c0 += p.depth) {
      const int64_t channels = smaller(p.depth, p.c - c0), class_size = channels * lanes + kPadding;
      if (!weight) {
        float* made = scratch_floats(kSlotPiece, piece(p.depth, kWide));
        transform_weight(p, c0, channels, k0, lanes, made, class_size);
        u = made;
      }
      for (int64_t q = 0; q < kClasses; ++q) {
        const int64_t row = class_row(q, count);
        const float* const now = u + q * class_size;
        multiply_rows(p.steps + c0 / kPack, channels, c0 == 0, points_of(q) * count, lanes, v + row * kPack, now,
                      lone ? now + 2 * class_size : nullptr, m + row * lanes);
      }
      u += piece(channels, lanes);
    }
    transform_output<Way>(p, first, count, k0, lanes, m);
    if (p.finish) report(p, first, count, smaller(lanes, p.k - k0));
  }
}

template <typename Way>
void run(Problem& p) {
  p.tiles_h = ceil_div(p.oh + p.out_top, Way::kOut), p.tiles_w = ceil_div(p.ow + p.out_left, Way::kOut);
  p.tiles = p.n * p.tiles_h * p.tiles_w;
  if (p.tiles == 0) return;
  p.blocks = ceil_div(p.c, kPack);
  const int64_t wide = ceil_div(p.k, kWide);
  const bool keep = weights_are_kept() || kClasses * p.c * p.k * 4 <= kWeightBytes;
  p.depth = smaller(kPieceChannels, p.c);
  const int64_t most = kBlockBytes / (kPoints * (p.blocks * kPack + kWide) * 4);
  int64_t capacity = larger(most, keep ? kTilePixels : kLeastTiles);
  const auto [count, parts] = share_tiles(p.tiles, capacity, wide, keep);
  capacity = ceil_div(p.tiles, count);
  Step* steps = static_cast<Step*>(scratch(kSlotLists, static_cast<size_t>(p.blocks) * sizeof(Step)));
  for (int64_t b = 0; b < p.blocks; ++b)
    steps[b] = {b * all_rows(capacity) * kPack, smaller(kPack, p.c - b * kPack), 0, b * kPack, b * kPack};
  p.steps = steps;
  float* all = nullptr;
  if (keep) {
    bool ready;
    all = packed_weights(kSlotWeight, weight_offset(p, wide * kWide), ready);
    const int64_t pieces = ready ? 0 : ceil_div(p.c, p.depth);
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < wide * pieces; ++i) {
      const int64_t k0 = i / pieces * kWide, c0 = i % pieces * p.depth, channels = smaller(p.depth, p.c - c0);
      const int64_t lanes = lanes_from(p, k0);
      transform_weight(p, c0, channels, k0, lanes, all + weight_offset(p, k0) + c0 / p.depth * piece(p.depth, lanes),
                       channels * lanes + kPadding);
    }
  }
#pragma omp parallel for schedule(dynamic, 1)
  for (int64_t item = 0; item < count * parts; ++item) {
    const int64_t block = item / parts, part = item % parts, first = block * capacity;
    if (first >= p.tiles) continue;
    run_block<Way>(p, capacity, all, first, smaller(capacity, p.tiles - first), wide * part / parts * kWide,
                   smaller(wide * (part + 1) / parts * kWide, p.k));
  }
}

}  // namespace

bool conv2d_stride2_pays(const Conv2dShape& g) {
  if (g.r != 3 || g.s != 3 || g.stride_h != 2 || g.stride_w != 2 || g.dilation_h != 1 || g.dilation_w != 1)
    return false;
  if (g.groups != 1 || g.c < 32 || g.k < 32) return false;
  // outputs kept of those computed
  const int64_t tiles = ceil_div(g.out_h(), 2) * ceil_div(g.out_w(), 2);
  return 10 * g.out_h() * g.out_w() >= 9 * 4 * tiles;
}

void conv2d_stride2_forward(const Conv2dShape& g, const float* x, const float* weight, const Epilogue& e, float* y) {
  Problem p{};
  p.n = g.n, p.h = g.h, p.w = g.w, p.c = g.c, p.k = g.k, p.oh = g.out_h(), p.ow = g.out_w();
  p.in_top = g.pad_top, p.in_left = g.pad_left;
  p.x = x, p.weight = weights_ready() ? nullptr : arrange(p, weight);
  p.bias = e.bias, p.y = y, p.relu = e.relu, p.finish = e.finish;
  run<Forward>(p);
}

void conv2d_stride2_backward_data(const Conv2dShape& g, const float* dy, const float* weight, const float* bias,
                                  float* dx) {
  Problem p{};
  p.n = g.n, p.h = g.out_h(), p.w = g.out_w(), p.c = g.k, p.k = g.c, p.oh = g.h, p.ow = g.w;
  // the first dx of a tile is one that g1 alone meets
  p.out_top = g.pad_top % 2 == 0, p.out_left = g.pad_left % 2 == 0;
  p.in_top = (p.out_top + 1 - g.pad_top) / 2, p.in_left = (p.out_left + 1 - g.pad_left) / 2;
  p.x = dy, p.weight = arrange_turned(p, weight), p.bias = bias, p.y = dx;
  run<Backward>(p);
}

}  // namespace medmpi::MEDMPI_ISA
