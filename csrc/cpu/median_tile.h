#pragma once
// What the median kernels work on: a piece of the array with its surroundings, copied next to each other and turned
// into signed integers of the same order, so that no kernel knows of borders or element types. Scratch slot 12.
#include <limits>

#include "cpu/simd.h"
#include "ops/median.h"
#include "ops/scratch.h"

namespace medmpi::MEDMPI_ISA {
namespace {

template <typename T>
struct KeyOf;
template <>
struct KeyOf<uint8_t> {
  using Type = int8_t;
};
template <>
struct KeyOf<uint16_t> {
  using Type = int16_t;
};
template <>
struct KeyOf<float> {
  using Type = int32_t;
};

MEDMPI_INLINE int8_t to_key(uint8_t v) { return static_cast<int8_t>(v ^ 0x80); }
MEDMPI_INLINE int16_t to_key(uint16_t v) { return static_cast<int16_t>(v ^ 0x8000); }
MEDMPI_INLINE int32_t to_key(float v) {
  int32_t bits;
  std::memcpy(&bits, &v, sizeof v);
  return bits ^ ((bits >> 31) & 0x7fffffff);
}

/// Vectors of keys.
template <typename Key>
struct Keys {
  typedef Key Type __attribute__((vector_size(4 * kLanes)));
  static constexpr int64_t kWidth = 4 * kLanes / static_cast<int64_t>(sizeof(Key));
};
template <typename Key>
MEDMPI_INLINE typename Keys<Key>::Type load_keys(const Key* p) {
  typename Keys<Key>::Type v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

/// The elements of a vector of keys to y, at most `count` of them.
template <typename T, typename V>
MEDMPI_INLINE void store_values(V keys, T* y, int64_t count) {
  using Key = typename KeyOf<T>::Type;
  V values;
  if constexpr (sizeof(T) == 4)
    values = keys ^ ((keys >> 31) & 0x7fffffff);
  else
    values = keys ^ std::numeric_limits<Key>::min();
  if (count >= Keys<Key>::kWidth)
    std::memcpy(y, &values, sizeof values);
  else
    std::memcpy(y, &values, static_cast<size_t>(count) * sizeof(T));
}

/// Values that a kernel may read or write beyond a line's end.
template <typename Key>
constexpr int64_t kSlack = 4 * Keys<Key>::kWidth;

/// One line of a tile: values [first, first + count) of the line at x, constants where x is null.
template <typename T, typename Key>
inline void fill_line(const MedianShape& s, const T* x, int64_t first, int64_t count, Key* to) {
  const int64_t width = s.width * s.channels, c = s.channels;
  const auto value = [=, &s](int64_t at) {
    const int64_t group = at < 0 ? (at + 1) / c - 1 : at / c;
    const int64_t from = x ? border_source(s.border, group, s.width) : -1;
    return to_key(from < 0 ? static_cast<T>(s.outside) : x[from * c + at - group * c]);
  };
  const int64_t begin = !x ? count : first < 0 ? -first : 0;
  const int64_t end = !x ? count : first + count < width ? count : width - first;
  for (int64_t j = 0; j < begin; ++j) to[j] = value(first + j);
  for (int64_t j = begin; j < end; ++j) to[j] = to_key(x[first + j]);
  for (int64_t j = end; j < count; ++j) to[j] = value(first + j);
  for (int64_t j = count; j < count + kSlack<Key>; ++j) to[j] = to[count - 1];
}

/// Results [i0, i0 + rows) x [j0, j0 + cols) of plane z of the volume at x: result (i, j) has its window at planes
/// 0..2 rz, lines i..i + 2 ry and keys j + t channels, 0 <= t <= 2 rx. Lines have room to read whole vectors.
template <typename T>
class Tile {
 public:
  using Key = typename KeyOf<T>::Type;

  const MedianShape& s;
  const int64_t rows, cols;
  const int64_t columns;  // keys of a line: cols and what surrounds them
  const int64_t pitch;    // keys from one line to the next; a distance that shares no cache sets
  const int64_t height;   // lines of a plane

  Tile(const MedianShape& shape, const T* x, int64_t z, int64_t i0, int64_t tile_rows, int64_t j0, int64_t tile_cols)
      : s(shape),
        rows(tile_rows),
        cols(tile_cols),
        columns(cols + 2 * s.rx * s.channels),
        pitch((columns + kSlack<Key> + 63) / 64 * 64 + 64),
        height(rows + 2 * s.ry),
        x_(x),
        z_(z),
        i0_(i0),
        j0_(j0),
        data_(static_cast<Key*>(scratch(12, static_cast<size_t>((2 * s.rz + 1) * height * pitch) * sizeof(Key)))) {}

  /// Line i of plane p of the window.
  const Key* line(int64_t p, int64_t i) const { return data_ + (p * height + i) * pitch; }

  /// Copies the lines that result i needs and that are not there yet.
  void fill_for(int64_t i) {
    for (; filled_ <= i + 2 * s.ry; ++filled_) {
      const int64_t row = border_source(s.border, i0_ + filled_ - s.ry, s.height);
      for (int64_t p = 0; p <= 2 * s.rz; ++p) {
        const int64_t plane = border_source(s.border, z_ + p - s.rz, s.depth);
        const T* from = plane < 0 || row < 0 ? nullptr : x_ + (plane * s.height + row) * s.width * s.channels;
        fill_line(s, from, j0_ - s.rx * s.channels, columns, data_ + (p * height + filled_) * pitch);
      }
    }
  }

 private:
  const T* x_;
  int64_t z_, i0_, j0_;
  Key* data_;
  int64_t filled_ = 0;
};

}  // namespace
}  // namespace medmpi::MEDMPI_ISA
