// Depthwise 3x3 convolution of stride 1 or 2 for arrays that come from memory or have many channels: all channels of a
// tile of two rows by a few columns, one vector after the other, so that memory is read and written in the order it
// lies; what the next two rows need is asked for meanwhile. Outside the image a row of zeros is read.
#include "cpu/depthwise_tile.h"

#include <type_traits>

#include "cpu/simd.h"
#include "cpu/sizes.h"

namespace medmpi::MEDMPI_ISA {
namespace {

template <int Stride>
constexpr int kColumns = Stride == 1 && kLanes == 16 ? 4 : 2;  // outputs of a tile in each of two rows
constexpr int64_t kBlock = 1024;                               // channels at a time
alignas(64) const float kZeros[kBlock] = {};

template <int N>
using Constant = std::integral_constant<int, N>;

/// Rows, or columns, of inputs of this many outputs.
constexpr int inputs(int stride, int outputs) { return (outputs - 1) * stride + 3; }

/// Where the inputs of two rows of outputs are: at channels outside the image, zeros.
template <int Stride>
struct Window {
  static constexpr int kRows = inputs(Stride, 2);
  const float* at[kRows][inputs(Stride, kColumns<Stride>)];
};

/// The rows of inputs of output rows i and i + 1.
template <int Stride>
struct Rows {
  Row row[Window<Stride>::kRows];
  Rows(const Walk& k, const float* image, int64_t i) {
    for (int r = 0; r < Window<Stride>::kRows; ++r) {
      const int64_t at = i * Stride - k.top + r;
      row[r] = at < 0 || at >= k.h ? Row{kZeros, 0} : Row{image + at * k.w * k.c, k.c};
    }
  }

  /// The window of `Columns` outputs from column j on and from channel c on.
  template <int Columns>
  MEDMPI_INLINE void look(const Walk& k, int64_t j, int64_t c, Window<Stride>& window) const {
    constexpr int width = inputs(Stride, Columns);
    const int64_t left = j * Stride - k.left;
    const bool inside = left >= 0 && left + width <= k.w;
#pragma GCC unroll 5
    for (int r = 0; r < Window<Stride>::kRows; ++r) {
      const float* const at = row[r].data + left * row[r].step + (row[r].step ? c : 0);
#pragma GCC unroll 6
      for (int64_t q = 0; q < width; ++q)
        window.at[r][q] = inside || (left + q >= 0 && left + q < k.w) ? at + q * row[r].step : kZeros;
    }
  }
};

/// Floats to the next row of inputs and of outputs, or zeros: nothing is asked for ahead.
struct Ahead {
  int64_t in, out;
  Ahead(const Walk& k, bool far) : in(far ? k.w * k.c : 0), out(k.ow * k.c) {}

  /// What the next two rows of outputs add to a window, and they themselves, which are written with `Write`.
  template <int Stride, int Columns, int Write>
  MEDMPI_INLINE void fetch(const Window<Stride>& x, const float* y, int64_t pixel, int64_t c) const {
    if (!in) return;
#pragma GCC unroll 4
    for (int q = 0; q < Columns * Stride; ++q)
#pragma GCC unroll 4
      for (int r = 1; r <= 2 * Stride; ++r)
        __builtin_prefetch(x.at[Window<Stride>::kRows - 1][q + 3 - Stride] + c + r * in, 0, 2);
#pragma GCC unroll 4
    for (int j = 0; j < Columns; ++j) {
      __builtin_prefetch(y + c + j * pixel + 2 * out, Write, 2);
      __builtin_prefetch(y + c + j * pixel + 3 * out, Write, 2);
    }
  }
};

/// Calls body(columns, j) for groups of kColumns columns and for what is left, `columns` being a constant.
template <int Stride, typename Body>
MEDMPI_INLINE void for_columns(int64_t width, const Body& body) {
  constexpr int columns = kColumns<Stride>;
  int64_t j = 0;
  for (; j + columns <= width; j += columns) body(Constant<columns>{}, j);
  if constexpr (columns > 2) {
    if (width - j == 3) body(Constant<3>{}, j);
    if (width - j == 2) body(Constant<2>{}, j);
  }
  if (width - j == 1) body(Constant<1>{}, j);
}

/// Two rows of `Columns` outputs. Tap t is at weight + t * tap; `below` is null where the second row does not exist.
template <int Stride, int Columns>
void tile(const Window<Stride>& x, const Ahead& ahead, int64_t count, const float* weight, int64_t tap,
          const float* bias, bool relu, int64_t pixel, float* y, float* below) {
  constexpr int width = inputs(Stride, Columns), height = Window<Stride>::kRows;
  for_channels(count, [&](int64_t c, auto channels) __attribute__((always_inline)) {
    ahead.fetch<Stride, Columns, 1>(x, y, pixel, c);
    Vec sum[2][Columns], taps[9];
    const Vec start = bias ? channels.get(bias + c) : Vec{};
#pragma GCC unroll 9
    for (int t = 0; t < 9; ++t) taps[t] = channels.get(weight + t * tap + c);
#pragma GCC unroll 4
    for (int j = 0; j < Columns; ++j) sum[0][j] = sum[1][j] = start;
#pragma GCC unroll 5
    for (int r = 0; r < height; ++r) {
      Vec in[width];
#pragma GCC unroll 6
      for (int q = 0; q < width; ++q) in[q] = channels.get(x.at[r][q] + c);
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i) {
        const int t = r - i * Stride;
        if (t < 0 || t > 2) continue;
#pragma GCC unroll 3
        for (int s = 0; s < 3; ++s)
#pragma GCC unroll 4
          for (int j = 0; j < Columns; ++j) sum[i][j] += in[j * Stride + s] * taps[3 * t + s];
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
  });
}

/// sums[9][count], whose taps are `tap` apart, += the products of two rows of `Columns` dy with their inputs.
template <int Stride, int Columns>
MEDMPI_INLINE void tile_weight(const Window<Stride>& x, const Ahead& ahead, int64_t count, const float* dy,
                               const float* below, int64_t pixel, int64_t tap, float* sums) {
  constexpr int width = inputs(Stride, Columns), height = Window<Stride>::kRows;
  for_channels(count, [&](int64_t c, auto channels) __attribute__((always_inline)) {
    ahead.fetch<Stride, Columns, 0>(x, dy, pixel, c);
    Vec sum[9], out[2][Columns];
#pragma GCC unroll 9
    for (int t = 0; t < 9; ++t) sum[t] = channels.get(sums + t * tap + c);
#pragma GCC unroll 4
    for (int j = 0; j < Columns; ++j) {
      out[0][j] = channels.get(dy + j * pixel + c);
      out[1][j] = below ? channels.get(below + j * pixel + c) : Vec{};
    }
#pragma GCC unroll 5
    for (int r = 0; r < height; ++r) {
      Vec in[width];
#pragma GCC unroll 6
      for (int q = 0; q < width; ++q) in[q] = channels.get(x.at[r][q] + c);
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i) {
        const int t = r - i * Stride;
        if (t < 0 || t > 2) continue;
#pragma GCC unroll 4
        for (int j = 0; j < Columns; ++j)
#pragma GCC unroll 3
          for (int s = 0; s < 3; ++s) sum[3 * t + s] += in[j * Stride + s] * out[i][j];
      }
    }
#pragma GCC unroll 9
    for (int t = 0; t < 9; ++t) channels.put(sums + t * tap + c, sum[t]);
  });
}

template <int Stride>
void tile_rows(const Walk& k, int64_t i, bool far, const float* image, const float* weight, bool turned,
               const float* bias, bool relu, float* y) {
  const Rows<Stride> in(k, image, i);
  const Ahead ahead(k, far);
  float* const rows = y + i * k.ow * k.c;
  for (int64_t c = 0; c < k.c; c += kBlock)
    for_columns<Stride>(k.ow, [&](auto columns, int64_t j) {
      Window<Stride> window;
      in.template look<columns>(k, j, c, window);
      float* const out = rows + j * k.c + c;
      tile<Stride, columns>(window, ahead, smaller(kBlock, k.c - c), weight + (turned ? 8 * k.c : 0) + c,
                            turned ? -k.c : k.c, bias ? bias + c : nullptr, relu, k.c, out,
                            i + 1 < k.oh ? out + k.ow * k.c : nullptr);
    });
}

template <int Stride>
void weight_rows(const Walk& k, int64_t i0, int64_t i1, const float* image, const float* dy, float* sums) {
  const Ahead ahead(k, true);
  for (int64_t i = i0; i < i1; i += 2) {
    const Rows<Stride> in(k, image, i);
    for (int64_t c = 0; c < k.c; c += kBlock)
      for_columns<Stride>(k.ow, [&](auto columns, int64_t j) {
        Window<Stride> window;
        in.template look<columns>(k, j, c, window);
        const float* const out = dy + (i * k.ow + j) * k.c + c;
        tile_weight<Stride, columns>(window, ahead, smaller(kBlock, k.c - c), out,
                                     i + 1 < i1 ? out + k.ow * k.c : nullptr, k.c, k.c, sums + c);
      });
  }
}

}  // namespace

void depthwise_tile_rows(const Walk& k, int64_t stride, int64_t i, bool far, const float* image, const float* weight,
                         bool turned, const float* bias, bool relu, float* y) {
  (stride == 1 ? tile_rows<1> : tile_rows<2>)(k, i, far, image, weight, turned, bias, relu, y);
}

void depthwise_tile_weight(const Walk& k, int64_t stride, int64_t i0, int64_t i1, const float* image, const float* dy,
                           float* sums) {
  (stride == 1 ? weight_rows<1> : weight_rows<2>)(k, i0, i1, image, dy, sums);
}

}  // namespace medmpi::MEDMPI_ISA
