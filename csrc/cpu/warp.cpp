// Affine warps of small uint8 images: one image to a chunk, one row at a time. Positions have 16 fractional bits, of
// which the blend uses 8. Grey levels go through a table of 256 entries per channel.
#include "ops/warp.h"

#include "cpu/simd.h"
#include "cpu/threads.h"

namespace medmpi::MEDMPI_ISA {
namespace {

constexpr int64_t kOne = 65536, kHalf = kOne / 2;
constexpr int64_t kTableChannels = 4;  // Images with more channels have their colours computed, not looked up.

MEDMPI_INLINE uint8_t recoloured(int64_t value, const int64_t* gain_bias) {
  const int64_t v = (value * gain_bias[0] + gain_bias[1] + 2048) >> 12;
  return static_cast<uint8_t>(v < 0 ? 0 : v > 255 ? 255 : v);
}

/// The first of the steps 0..count-1 from `at` by `step` with a position in [0, limit), and the one after the last.
MEDMPI_INLINE void inside(int64_t at, int64_t step, int64_t limit, int64_t* first, int64_t* stop) {
  while (*first < *stop && static_cast<uint64_t>(at + step * *first) >= static_cast<uint64_t>(limit)) ++*first;
  while (*first < *stop && static_cast<uint64_t>(at + step * (*stop - 1)) >= static_cast<uint64_t>(limit)) --*stop;
}

/// A blend of the four neighbours of (row, column), those outside the image counting as 0.
MEDMPI_INLINE void blend_at_edge(const WarpShape& s, const uint8_t* x, int64_t column, int64_t row, uint8_t* y) {
  const int64_t left = column >> 16, top = row >> 16;
  const int64_t u = (column >> 8) & 255, v = (row >> 8) & 255;
  const int64_t weights[4] = {(256 - u) * (256 - v), u * (256 - v), (256 - u) * v, u * v};
  for (int64_t k = 0; k < s.c; ++k) {
    int64_t sum = kHalf;
    for (int64_t tap = 0; tap < 4; ++tap) {
      const int64_t i = top + tap / 2, j = left + tap % 2;
      if (i >= 0 && i < s.h && j >= 0 && j < s.w) sum += weights[tap] * x[(i * s.w + j) * s.c + k];
    }
    y[k] = static_cast<uint8_t>(sum >> 16);
  }
}

/// One output row, all of whose neighbours between `first` and `stop` lie inside. C is 0 where only s.c knows it.
template <int64_t C>
MEDMPI_INLINE void blend_row(const WarpShape& s, const uint8_t* x, const int64_t* m, int64_t column, int64_t row,
                             uint8_t* y) {
  const int64_t c = C ? C : s.c, pitch = s.w * c;
  int64_t first = 0, stop = s.w;
  inside(column, m[0], (s.w - 1) * kOne, &first, &stop);
  inside(row, m[3], (s.h - 1) * kOne, &first, &stop);
  for (int64_t j = 0; j < first; ++j) blend_at_edge(s, x, column + m[0] * j, row + m[3] * j, y + j * c);
  for (int64_t j = first; j < stop; ++j) {
    const int64_t at_column = column + m[0] * j, at_row = row + m[3] * j;
    const auto u = static_cast<int32_t>((at_column >> 8) & 255), v = static_cast<int32_t>((at_row >> 8) & 255);
    const uint8_t* p = x + (at_row >> 16) * pitch + (at_column >> 16) * c;
    for (int64_t k = 0; k < c; ++k) {
      const int32_t upper = p[k] * (256 - u) + p[c + k] * u;
      const int32_t lower = p[pitch + k] * (256 - u) + p[pitch + c + k] * u;
      y[j * c + k] = static_cast<uint8_t>((upper * (256 - v) + lower * v + static_cast<int32_t>(kHalf)) >> 16);
    }
  }
  for (int64_t j = stop; j < s.w; ++j) blend_at_edge(s, x, column + m[0] * j, row + m[3] * j, y + j * c);
}

template <int64_t C>
MEDMPI_INLINE void nearest_row(const WarpShape& s, const uint8_t* x, const int64_t* m, int64_t column, int64_t row,
                               uint8_t* y) {
  const int64_t c = C ? C : s.c;
  int64_t first = 0, stop = s.w;
  inside(column + kHalf, m[0], s.w * kOne, &first, &stop);
  inside(row + kHalf, m[3], s.h * kOne, &first, &stop);
  if (stop <= first) first = stop = 0;
  std::memset(y, 0, static_cast<size_t>(first * c));
  const int64_t j0 = first;
  if (m[0] == kOne && m[3] == 0 && stop > first) {
    const int64_t i = (row + kHalf) >> 16, left = (column + kHalf) >> 16;
    std::memcpy(y + j0 * c, x + (i * s.w + left + j0) * c, static_cast<size_t>((stop - j0) * c));
  } else {
    for (int64_t j = first; j < stop; ++j) {
      const uint8_t* p = x + (((row + m[3] * j + kHalf) >> 16) * s.w + ((column + m[0] * j + kHalf) >> 16)) * c;
      for (int64_t k = 0; k < c; ++k) y[j * c + k] = p[k];
    }
  }
  std::memset(y + stop * c, 0, static_cast<size_t>((s.w - stop) * c));
}

/// The results of one image's grey-level change: a table per channel, or the change itself for many channels.
struct Levels {
  const int64_t* colour;
  uint8_t table[kTableChannels][256];
};

template <int64_t C>
MEDMPI_INLINE void recolour_row(const WarpShape& s, const Levels& levels, uint8_t* y) {
  const int64_t c = C ? C : s.c;
  if (c > kTableChannels) {
    for (int64_t i = 0; i < s.w * c; ++i) y[i] = recoloured(y[i], levels.colour + 2 * (i % c));
    return;
  }
  for (int64_t j = 0; j < s.w; ++j, y += c)
    for (int64_t k = 0; k < c; ++k) y[k] = levels.table[k][y[k]];
}

template <int64_t C>
void warp_image(const WarpShape& s, const uint8_t* x, const int64_t* m, const int64_t* colour, uint8_t* y) {
  // Whole pixels to whole pixels (shifts, flips, quarter turns) need no blend: the result is the same.
  bool whole = true;
  for (int k = 0; k < 6; ++k) whole = whole && (m[k] & (kOne - 1)) == 0;
  const bool blend = s.bilinear && !whole;
  Levels levels;
  levels.colour = colour;
  if (colour && s.c <= kTableChannels)
    for (int64_t k = 0; k < s.c; ++k)
      for (int64_t v = 0; v < 256; ++v) levels.table[k][v] = recoloured(v, colour + 2 * k);
  for (int64_t i = 0; i < s.h; ++i) {
    const int64_t column = m[1] * i + m[2], row = m[4] * i + m[5];
    uint8_t* out = y + i * s.w * s.c;
    if (blend)
      blend_row<C>(s, x, m, column, row, out);
    else
      nearest_row<C>(s, x, m, column, row, out);
    if (colour) recolour_row<C>(s, levels, out);
  }
}

void forward(const WarpShape& s, const uint8_t* x, const int64_t* matrix, const int64_t* colour, uint8_t* y) {
  const int64_t image = s.h * s.w * s.c;
  for_chunks(s.n, 1, [=, &s](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const uint8_t* in = x + i * image;
      uint8_t* out = y + i * image;
      const int64_t* levels = colour ? colour + 2 * s.c * i : nullptr;
      if (s.c == 1)
        warp_image<1>(s, in, matrix + 6 * i, levels, out);
      else if (s.c == 3)
        warp_image<3>(s, in, matrix + 6 * i, levels, out);
      else
        warp_image<0>(s, in, matrix + 6 * i, levels, out);
    }
  });
}

}  // namespace

extern const WarpOps warp;
const WarpOps warp = {forward};

}  // namespace medmpi::MEDMPI_ISA
