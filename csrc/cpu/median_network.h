#pragma once
// Medians of 3x3, 5x5 and 3x3x3 windows by sorting networks, a vector of results at a time. Columns are sorted once and
// shared by the windows that contain them; in a window the values of each rank are then sorted (in part) across its
// columns, which leaves few that can be the median. Networks: D. Knuth, The Art of Computer Programming 3, 5.3.4; what
// no result depends on is left to the compiler to drop.
#include <type_traits>

#include "cpu/simd.h"
#include "ops/median.h"
#include "ops/scratch.h"

namespace medmpi::MEDMPI_ISA {
namespace {

template <typename V>
MEDMPI_INLINE V lower(V a, V b) {
  return a < b ? a : b;
}
template <typename V>
MEDMPI_INLINE V upper(V a, V b) {
  return a < b ? b : a;
}
template <typename V>
MEDMPI_INLINE void order(V& a, V& b) {
  const V low = lower(a, b);
  b = upper(a, b);
  a = low;
}

template <typename V>
MEDMPI_INLINE void sort(V (&v)[2]) {
  order(v[0], v[1]);
}
template <typename V>
MEDMPI_INLINE void sort(V (&v)[4]) {
  order(v[0], v[1]), order(v[2], v[3]);
  order(v[0], v[2]), order(v[1], v[3]);
  order(v[1], v[2]);
}
template <typename V>
MEDMPI_INLINE void sort(V (&v)[3]) {
  order(v[0], v[1]), order(v[1], v[2]), order(v[0], v[1]);
}
template <typename V>
MEDMPI_INLINE void sort(V (&v)[5]) {
  order(v[0], v[3]), order(v[1], v[4]);
  order(v[0], v[2]), order(v[1], v[3]);
  order(v[0], v[1]), order(v[2], v[4]);
  order(v[1], v[2]), order(v[3], v[4]);
  order(v[2], v[3]);
}
template <typename V>
MEDMPI_INLINE void sort(V (&v)[9]) {
  order(v[0], v[3]), order(v[1], v[7]), order(v[2], v[5]), order(v[4], v[8]);
  order(v[0], v[7]), order(v[2], v[4]), order(v[3], v[8]), order(v[5], v[6]);
  order(v[0], v[2]), order(v[1], v[3]), order(v[4], v[5]), order(v[7], v[8]);
  order(v[1], v[4]), order(v[3], v[6]), order(v[5], v[7]);
  order(v[0], v[1]), order(v[2], v[4]), order(v[3], v[5]), order(v[6], v[8]);
  order(v[2], v[3]), order(v[4], v[5]), order(v[6], v[7]);
  order(v[1], v[2]), order(v[3], v[4]), order(v[5], v[6]);
}

/// Puts one more value among `N` sorted ones.
template <int N, typename V>
MEDMPI_INLINE void insert(const V (&sorted)[N], V value, V (&out)[N + 1]) {
#pragma GCC unroll 9
  for (int i = 0; i < N; ++i) {
    out[i] = lower(sorted[i], value);
    value = upper(sorted[i], value);
  }
  out[N] = value;
}

/// The columns of two windows, one line apart, sorted: the lines that they share are sorted once.
template <typename V, int N>
MEDMPI_INLINE void sort_both(V (&shared)[N], V first, V last, V (&upper_window)[N + 1], V (&lower_window)[N + 1]) {
  sort(shared);
  insert<N>(shared, first, upper_window);
  insert<N>(shared, last, lower_window);
}

/// Batcher's merge of two sorted pairs.
template <typename V>
MEDMPI_INLINE void merge_pairs(V& a0, V& a1, V& b0, V& b1) {  // results in a0, b0, a1, b1
  order(a0, b0), order(a1, b1), order(b0, a1);
}

/// The better one of two is the higher one, or the lower one.
template <bool kHigher, typename V>
MEDMPI_INLINE V better(V a, V b) {
  return kHigher ? upper(a, b) : lower(a, b);
}

/// The best two of five, best first, in v[0] and v[1].
template <bool kHigher, typename V>
MEDMPI_INLINE void two_best(V (&v)[5]) {
  const V lost = better<kHigher>(better<!kHigher>(v[0], v[1]), better<!kHigher>(v[2], v[3]));
  const V left = better<kHigher>(v[0], v[1]), right = better<kHigher>(v[2], v[3]);
  const V best = better<kHigher>(left, right), next = better<kHigher>(better<!kHigher>(left, right), lost);
  v[0] = better<kHigher>(best, v[4]);
  v[1] = better<kHigher>(next, better<!kHigher>(best, v[4]));
}

/// The best three of five, best first, in v[0], v[1] and v[2].
template <bool kHigher, typename V>
MEDMPI_INLINE void three_best(V (&v)[5]) {
  const V lost = better<kHigher>(better<!kHigher>(v[0], v[1]), better<!kHigher>(v[2], v[3]));
  const V left = better<kHigher>(v[0], v[1]), right = better<kHigher>(v[2], v[3]);
  const V best = better<kHigher>(left, right), worse = better<!kHigher>(left, right);
  const V next = better<kHigher>(worse, lost), last = better<kHigher>(better<!kHigher>(worse, lost), v[4]);
  const V third = better<!kHigher>(last, next), second = better<kHigher>(last, next);
  v[0] = better<kHigher>(second, best);
  v[1] = better<!kHigher>(second, best);
  v[2] = third;
}

/// The median of a window; v(rank, column) is the value of this rank of a sorted column.
struct Window3 {
  static constexpr int kRadius = 1;
  static constexpr int kHeight = 3;
  template <typename V, typename Value>
  static MEDMPI_INLINE V median(const Value& v) {
    V lowest[3] = {v(0, 0), v(0, 1), v(0, 2)};
    V middle[3] = {v(1, 0), v(1, 1), v(1, 2)};
    V highest[3] = {v(2, 0), v(2, 1), v(2, 2)};
    sort(lowest), sort(middle), sort(highest);
    V last[3] = {lowest[2], middle[1], highest[0]};
    sort(last);
    return last[1];
  }
};

struct Window5 {
  static constexpr int kRadius = 2;
  static constexpr int kHeight = 5;
  template <typename V, typename Value>
  static MEDMPI_INLINE V median(const Value& v) {
    // of the two lowest ranks only the five highest can be the median, of the two highest the five lowest: p and q
    V a[5] = {v(0, 0), v(0, 1), v(0, 2), v(0, 3), v(0, 4)};
    V b[5] = {v(1, 0), v(1, 1), v(1, 2), v(1, 3), v(1, 4)};
    two_best<true>(a), three_best<true>(b);
    merge_pairs(a[1], a[0], b[2], b[1]);
    const V p[5] = {a[1], b[2], a[0], b[1], b[0]};
    V d[5] = {v(3, 0), v(3, 1), v(3, 2), v(3, 3), v(3, 4)};
    V e[5] = {v(4, 0), v(4, 1), v(4, 2), v(4, 3), v(4, 4)};
    three_best<false>(d), two_best<false>(e);
    merge_pairs(d[1], d[2], e[0], e[1]);
    const V q[5] = {d[0], d[1], e[0], d[2], e[1]};
    // the four in the middle of p and q merged
    V e2 = upper(p[1], q[1]), e3 = lower(p[3], q[3]);
    order(e2, e3);
    V u2 = upper(p[0], q[0]), u3 = lower(p[4], q[4]);
    order(u2, u3);
    V o3 = upper(u2, lower(p[2], q[2])), o4 = lower(u3, upper(p[2], q[2]));
    order(o3, e2), order(o4, e3);
    V c[5] = {v(2, 0), v(2, 1), v(2, 2), v(2, 3), v(2, 4)};
    sort(c);
    // the fourth of those four and the three of the middle rank that are left
    return lower(lower(e3, upper(o4, c[1])), lower(upper(e2, c[2]), upper(o3, c[3])));
  }
};

struct Window333 {
  static constexpr int kRadius = 1;
  static constexpr int kHeight = 9;
  template <typename V, typename Value>
  static MEDMPI_INLINE V median(const Value& v) {
    V row[9][3];
#pragma GCC unroll 9
    for (int r = 0; r < 9; ++r) {
      row[r][0] = v(r, 0), row[r][1] = v(r, 1), row[r][2] = v(r, 2);
      sort(row[r]);
    }
    // 13 of 27 can be the median: the highest of ranks 0..3, the middle ones of 2..6, the lowest of 5..8
    V a[4] = {row[0][2], row[1][2], row[2][2], row[3][2]};
    V b[4] = {row[5][0], row[6][0], row[7][0], row[8][0]};
    V odd0 = a[0], odd1 = a[2], odd2 = b[0], odd3 = b[2];
    merge_pairs(odd0, odd1, odd2, odd3);
    V even0 = a[1], even1 = a[3], even2 = b[1], even3 = b[3];
    merge_pairs(even0, even1, even2, even3);
    order(odd2, even0), order(odd1, even2), order(odd3, even1);
    const V s[6] = {odd2, even0, odd1, even2, odd3, even1};  // sorted, without the lowest and the highest
    V found = s[5];
#pragma GCC unroll 5
    for (int k = 0; k < 5; ++k) found = lower(found, upper(s[4 - k], row[2 + k][1]));
    return found;
  }
};

/// Elements as vectors that compare in their order: unsigned ones as they are, float32 as integers.
template <typename T>
struct Ordered {
  typedef std::conditional_t<sizeof(T) == 4, int32_t, T> Element;
  typedef Element V __attribute__((vector_size(4 * kLanes)));
  static constexpr int64_t kStep = 4 * kLanes / static_cast<int64_t>(sizeof(T));

  /// Turns float32 bits into integers of the same order, and back.
  static MEDMPI_INLINE V flip(V v) {
    if constexpr (sizeof(T) == 4) v ^= (v >> 31) & 0x7fffffff;
    return v;
  }
  static MEDMPI_INLINE Element of(T value) { return load(&value, 1)[0]; }
  static MEDMPI_INLINE V load(const T* p, int64_t count) {
    V v{};
    std::memcpy(&v, p, count < kStep ? static_cast<size_t>(count) * sizeof(T) : sizeof v);
    return flip(v);
  }
  static MEDMPI_INLINE void store(T* p, V v, int64_t count) {
    v = flip(v);
    std::memcpy(p, &v, count < kStep ? static_cast<size_t>(count) * sizeof(T) : sizeof v);
  }
};

/// Calls body(j, count) so that vectors from j on cover [0, n): the last one overlaps, a line of less than one is cut.
template <int64_t Step, typename Body>
MEDMPI_INLINE void for_vectors(int64_t n, const Body& body) {
  int64_t j = 0;
  for (; j + Step <= n; j += Step) body(j, Step);
  if (j < n) body(n < Step ? 0 : n - Step, n < Step ? n : Step);
}

/// Lines [first, last) of the plane z of a volume. Scratch slots: 12 line of constants, 13 sorted columns.
template <typename Window, typename T>
inline void network_lines(const MedianShape& s, const T* x, int64_t z, int64_t first, int64_t last, T* y) {
  using V = typename Ordered<T>::V;
  using Element = typename Ordered<T>::Element;
  constexpr int64_t kStep = Ordered<T>::kStep;
  constexpr int kHeight = Window::kHeight, kRadius = Window::kRadius, kLines = 2 * kRadius + 1;
  constexpr int kPlanes = kHeight / kLines;
  const int64_t c = s.channels, width = s.width * c, halo = s.rx * c;
  const int64_t left = (halo + 63) / 64 * 64, pitch = (left + width + halo + kStep + 63) / 64 * 64 + 64;
  auto* constant = static_cast<T*>(scratch(12, static_cast<size_t>(width) * sizeof(T)));
  if (s.border == Border::constant)
    for (int64_t j = 0; j < width; ++j) constant[j] = static_cast<T>(s.outside);
  auto* ranks = static_cast<Element*>(scratch(13, static_cast<size_t>(2 * kHeight * pitch) * sizeof(T))) + left;
  const Element outside = Ordered<T>::of(static_cast<T>(s.outside));
  int64_t end[2 * kRadius], source[2 * kRadius];  // where columns beyond the ends start, and those that they repeat
  for (int64_t t = 0; t < 2 * kRadius; ++t) {
    const int64_t column = t < kRadius ? t - kRadius : s.width + t - kRadius;
    end[t] = column * c;
    source[t] = border_source(s.border, column, s.width) * c;
  }
  for (int64_t i = first; i < last; i += 2) {
    const T* from[kPlanes][kLines + 1];
    for (int p = 0; p < kPlanes; ++p)
      for (int r = 0; r <= kLines; ++r) {
        const int64_t plane = border_source(s.border, z - s.rz + p, s.depth);
        const int64_t row = border_source(s.border, i - s.ry + r, s.height);
        from[p][r] = plane < 0 || row < 0 ? constant : x + (plane * s.height + row) * width;
      }
    for_vectors<kStep>(width, [=](int64_t j, int64_t count) {
      V v[2][kHeight];
      if constexpr (kPlanes == 1) {
        V shared[kLines - 1];
#pragma GCC unroll 9
        for (int r = 0; r < kLines - 1; ++r) shared[r] = Ordered<T>::load(from[0][r + 1] + j, count);
        sort_both(shared, Ordered<T>::load(from[0][0] + j, count), Ordered<T>::load(from[0][kLines] + j, count), v[0],
                  v[1]);
      } else {
#pragma GCC unroll 9
        for (int r = 0; r < kHeight; ++r) {
          v[0][r] = Ordered<T>::load(from[r / kLines][r % kLines] + j, count);
          v[1][r] = Ordered<T>::load(from[r / kLines][r % kLines + 1] + j, count);
        }
        sort(v[0]), sort(v[1]);
      }
#pragma GCC unroll 18
      for (int r = 0; r < 2 * kHeight; ++r)
        std::memcpy(ranks + r * pitch + j, &v[r / kHeight][r % kHeight], sizeof v[0][0]);
    });
    for (int t = 0; t < 2 * kRadius; ++t)  // sorted columns beyond the ends are those of their sources
      for (int r = 0; r < 2 * kHeight; ++r) {
        Element* rank = ranks + r * pitch;
        for (int64_t k = 0; k < c; ++k) rank[end[t] + k] = source[t] < 0 ? outside : rank[source[t] + k];
      }
    for (int64_t line = i; line < i + 2 && line < last; ++line) {
      const Element* own = ranks + (line - i) * kHeight * pitch;
      for_vectors<kStep>(width, [=](int64_t j, int64_t count) {
        Ordered<T>::store(y + line * width + j, Window::template median<V>([=](int rank, int column) {
                            V v;
                            std::memcpy(&v, own + rank * pitch + j + (column - kRadius) * c, sizeof v);
                            return v;
                          }),
                          count);
      });
    }
  }
}

}  // namespace
}  // namespace medmpi::MEDMPI_ISA
