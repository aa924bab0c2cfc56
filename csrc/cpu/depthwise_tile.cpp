// Depthwise 3x3 convolution of stride 1 for arrays that come from memory or have many channels: all channels of a tile
// of two rows by a few columns, one vector after the other, so that memory is read and written in the order it lies;
// what the next two rows need is asked for meanwhile. Outside the image a row of zeros is read.
#include "cpu/depthwise_tile.h"

#include <type_traits>

#include "cpu/simd.h"
#include "cpu/sizes.h"

namespace medmpi::MEDMPI_ISA {
namespace {

constexpr int kColumns = kLanes == 16 ? 4 : 2;  // outputs of a tile in each of two rows
constexpr int64_t kBlock = 1024;                // channels at a time
alignas(64) const float kZeros[kBlock] = {};

template <int N>
using Constant = std::integral_constant<int, N>;

/// Where the inputs of two rows of kColumns outputs are: at channels outside the image, zeros.
struct Window {
  const float* at[4][kColumns + 2];
};

/// The four rows of inputs of output rows i and i + 1.
struct Rows {
  Row row[4];
  Rows(const Walk& k, const float* image, int64_t i)
      : row{at(k, image, i), at(k, image, i + 1), at(k, image, i + 2), at(k, image, i + 3)} {}

  static Row at(const Walk& k, const float* image, int64_t i) {
    if (i < k.top || i - k.top >= k.h) return {kZeros, 0};
    return {image + (i - k.top) * k.w * k.c, k.c};
  }

  /// The window of `Columns` outputs from column j on and from channel c on.
  template <int Columns>
  MEDMPI_INLINE void look(const Walk& k, int64_t j, int64_t c, Window& window) const {
    const int64_t left = j - k.left;
    const bool inside = left >= 0 && left + Columns + 2 <= k.w;
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) {
      const float* const at = row[r].data + left * row[r].step + (row[r].step ? c : 0);
#pragma GCC unroll 6
      for (int64_t q = 0; q < Columns + 2; ++q)
        window.at[r][q] = inside || (left + q >= 0 && left + q < k.w) ? at + q * row[r].step : kZeros;
    }
  }
};

/// Floats to the next row of inputs and of outputs, or zeros: nothing is asked for ahead.
struct Ahead {
  int64_t in, out;
  Ahead(const Walk& k, bool far) : in(far ? k.w * k.c : 0), out(k.ow * k.c) {}

  /// The two rows below a window's last one, `x`, and the two below those at `y`, which is written with `Write`.
  template <int Columns, int Write>
  MEDMPI_INLINE void fetch(const float* const* x, const float* y, int64_t pixel, int64_t c) const {
    if (!in) return;
#pragma GCC unroll 4
    for (int j = 0; j < Columns; ++j) {
      __builtin_prefetch(x[j] + c + in, 0, 2);
      __builtin_prefetch(x[j] + c + 2 * in, 0, 2);
      __builtin_prefetch(y + c + j * pixel + 2 * out, Write, 2);
      __builtin_prefetch(y + c + j * pixel + 3 * out, Write, 2);
    }
  }
};

/// Calls body(columns, j) for groups of kColumns columns and for what is left, `columns` being a constant.
template <typename Body>
MEDMPI_INLINE void for_columns(int64_t width, const Body& body) {
  int64_t j = 0;
  for (; j + kColumns <= width; j += kColumns) body(Constant<kColumns>{}, j);
  if constexpr (kColumns > 2) {
    if (width - j == 3) body(Constant<3>{}, j);
    if (width - j == 2) body(Constant<2>{}, j);
  }
  if (width - j == 1) body(Constant<1>{}, j);
}

/// Two rows of `Columns` outputs. Tap t is at weight + t * tap; `below` is null where the second row does not exist.
template <int Columns>
void tile(const Window& x, const Ahead& ahead, int64_t count, const float* weight, int64_t tap, const float* bias,
          bool relu, int64_t pixel, float* y, float* below) {
  int64_t c = 0;
  const auto vector = [&](auto channels) __attribute__((always_inline)) {
    ahead.fetch<Columns, 1>(x.at[3] + 1, y, pixel, c);
    Vec sum[2][Columns], taps[9];
    const Vec start = bias ? channels.get(bias + c) : Vec{};
#pragma GCC unroll 9
    for (int t = 0; t < 9; ++t) taps[t] = channels.get(weight + t * tap + c);
#pragma GCC unroll 4
    for (int j = 0; j < Columns; ++j) sum[0][j] = sum[1][j] = start;
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) {
      Vec in[Columns + 2];
#pragma GCC unroll 6
      for (int q = 0; q < Columns + 2; ++q) in[q] = channels.get(x.at[r][q] + c);
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i) {
        if (r - i < 0 || r - i > 2) continue;
#pragma GCC unroll 3
        for (int s = 0; s < 3; ++s)
#pragma GCC unroll 4
          for (int j = 0; j < Columns; ++j) sum[i][j] += in[j + s] * taps[3 * (r - i) + s];
      }
    }
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      float* const out = (i ? below : y) + c;
      if (i && !below) break;
#pragma GCC unroll 4
      for (int j = 0; j < Columns; ++j) {
        if (relu) sum[i][j] = sum[i][j] < Vec{} ? Vec{} : sum[i][j];
        channels.put(out + j * pixel, sum[i][j]);
      }
    }
  };
  for (; c + kLanes <= count; c += kLanes) vector(Channels<true>{kLanes});
  if (c < count) vector(Channels<false>{count - c});
}

/// sums[9][count], whose taps are `tap` apart, += the products of two rows of `Columns` dy with their inputs.
template <int Columns>
MEDMPI_INLINE void tile_weight(const Window& x, const Ahead& ahead, int64_t count, const float* dy, const float* below,
                               int64_t pixel, int64_t tap, float* sums) {
  int64_t c = 0;
  const auto vector = [&](auto channels) __attribute__((always_inline)) {
    ahead.fetch<Columns, 0>(x.at[3] + 1, dy, pixel, c);
    Vec sum[9], out[2][Columns];
#pragma GCC unroll 9
    for (int t = 0; t < 9; ++t) sum[t] = channels.get(sums + t * tap + c);
#pragma GCC unroll 4
    for (int j = 0; j < Columns; ++j) {
      out[0][j] = channels.get(dy + j * pixel + c);
      out[1][j] = below ? channels.get(below + j * pixel + c) : Vec{};
    }
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) {
      Vec in[Columns + 2];
#pragma GCC unroll 6
      for (int q = 0; q < Columns + 2; ++q) in[q] = channels.get(x.at[r][q] + c);
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i) {
        if (r - i < 0 || r - i > 2) continue;
#pragma GCC unroll 4
        for (int j = 0; j < Columns; ++j)
#pragma GCC unroll 3
          for (int s = 0; s < 3; ++s) sum[3 * (r - i) + s] += in[j + s] * out[i][j];
      }
    }
#pragma GCC unroll 9
    for (int t = 0; t < 9; ++t) channels.put(sums + t * tap + c, sum[t]);
  };
  for (; c + kLanes <= count; c += kLanes) vector(Channels<true>{kLanes});
  if (c < count) vector(Channels<false>{count - c});
}

}  // namespace

void depthwise_tile_rows(const Walk& k, int64_t i, bool far, const float* image, const float* weight, bool turned,
                         const float* bias, bool relu, float* y) {
  const Rows in(k, image, i);
  const Ahead ahead(k, far);
  float* const rows = y + i * k.ow * k.c;
  for (int64_t c = 0; c < k.c; c += kBlock)
    for_columns(k.ow, [&](auto columns, int64_t j) {
      Window window;
      in.look<columns>(k, j, c, window);
      float* const out = rows + j * k.c + c;
      tile<columns>(window, ahead, smaller(kBlock, k.c - c), weight + (turned ? 8 * k.c : 0) + c, turned ? -k.c : k.c,
                    bias ? bias + c : nullptr, relu, k.c, out, i + 1 < k.oh ? out + k.ow * k.c : nullptr);
    });
}

void depthwise_tile_weight(const Walk& k, int64_t i0, int64_t i1, const float* image, const float* dy, float* sums) {
  const Ahead ahead(k, true);
  for (int64_t i = i0; i < i1; i += 2) {
    const Rows in(k, image, i);
    for (int64_t c = 0; c < k.c; c += kBlock)
      for_columns(k.ow, [&](auto columns, int64_t j) {
        Window window;
        in.look<columns>(k, j, c, window);
        const float* const out = dy + (i * k.ow + j) * k.c + c;
        tile_weight<columns>(window, ahead, smaller(kBlock, k.c - c), out, i + 1 < i1 ? out + k.ow * k.c : nullptr, k.c,
                             k.c, sums + c);
      });
  }
}

}  // namespace medmpi::MEDMPI_ISA
