#pragma once
// What the depthwise convolutions walk over: rows of pixels, a vector of channels at a time.
#include "cpu/simd.h"
#include "cpu/sizes.h"

namespace medmpi::MEDMPI_ISA {
namespace {

const float kZero[kLanes] = {};

/// Loads and stores of one vector of channels; the last one of a pixel may be short.
template <bool Full>
struct Channels {
  int64_t count;
  MEDMPI_INLINE Vec get(const float* p) const {
    if constexpr (Full) return load(p);
    return load_part(p, count);
  }
  MEDMPI_INLINE void put(float* p, Vec v) const {
    if constexpr (Full)
      store(p, v);
    else
      store_part(p, v, count);
  }
};

/// Calls body(c, channels) for each vector of channels.
template <typename Body>
MEDMPI_INLINE void for_channels(int64_t c, const Body& body) {
  int64_t i = 0;
  for (; i + kLanes <= c; i += kLanes) body(i, Channels<true>{kLanes});
  if (i < c) body(i, Channels<false>{c - i});
}

/// A row of one image at a channel, or zeros.
struct Row {
  const float* data;
  int64_t step;
};
MEDMPI_INLINE Row row_at(const float* image, int64_t row, int64_t rows, int64_t width, int64_t c, int64_t channel) {
  if (row < 0 || row >= rows) return {kZero, 0};
  return {image + row * width * c + channel, c};
}

}  // namespace

/// Asks for `Count` floats in the order they lie, to be read or, with `Write`, written.
template <int Count, int Write>
MEDMPI_INLINE void fetch(const float* p) {
#pragma GCC unroll 8
  for (int i = 0; i < Count; i += 16) __builtin_prefetch(p + i, Write);
}

/// Sizes of a walk along rows with a 3x3 filter: (h, w) in, (oh, ow) out.
struct Walk {
  int64_t h, w, c, oh, ow, top, left;
};

}  // namespace medmpi::MEDMPI_ISA
