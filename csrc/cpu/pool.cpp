// Pooling, vectorised over channels. Forward keeps a vector of channels in a register while it walks the window;
// backward gathers: each input pixel adds up the windows it belongs to, in a fixed order, and is written once.
#include "ops/pool.h"

#include "cpu/simd.h"
#include "cpu/threads.h"

namespace medmpi::MEDMPI_ISA {
namespace {

typedef uint8_t Bytes __attribute__((vector_size(kLanes)));

MEDMPI_INLINE void store_index(uint8_t* p, Mask v) {
  const Bytes b = __builtin_convertvector(v, Bytes);
  std::memcpy(p, &b, sizeof b);
}
MEDMPI_INLINE void store_index(int32_t* p, Mask v) { std::memcpy(p, &v, sizeof v); }

/// The largest value so far and its place; NaN wins over numbers and stays.
struct Best {
  Vec value;
  Mask place;

  MEDMPI_INLINE void meet(Vec v, int32_t at) {
#if defined(__AVX512F__)  // the compiler would carry the choice through vector registers
    const __mmask16 better =
        static_cast<__mmask16>(_mm512_cmp_ps_mask(v, value, _CMP_GT_OQ) | _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q));
    value = _mm512_mask_mov_ps(value, better, v);
    place = reinterpret_cast<Mask>(_mm512_mask_set1_epi32(reinterpret_cast<__m512i>(place), better, at));
#else
    const Mask better = (v > value) | (v != v);
    value = better ? v : value;
    place = better ? Mask{} + at : place;
#endif
  }
};

/// The part of a window that is inside the image along one axis: taps first .. last-1, the first at `position`.
struct Taps {
  int64_t first, last, position;
};

MEDMPI_INLINE Taps taps_inside(int64_t out, int64_t stride, int64_t pad, int64_t dilation, int64_t taps, int64_t size) {
  const int64_t start = out * stride - pad;
  if (dilation == 1) {  // a division costs as much as the rest of a small window
    const int64_t skip = start < 0 ? -start : 0;
    return {skip, size - start < taps ? size - start : taps, start + skip};
  }
  const int64_t first = start < 0 ? (-start + dilation - 1) / dilation : 0;
  const int64_t room = start < size ? (size - 1 - start) / dilation + 1 : 0;
  return {first, room < taps ? room : taps, start + first * dilation};
}

/// Maximum and its place for channels j .. j + lanes of one window.
template <typename Index>
MEDMPI_INLINE void max_vector(const MaxPool& d, const Taps& rows, const Taps& columns, const float* x, float* y,
                              Index* index) {
  const int64_t down = d.dilation_h * d.w * d.c, right = d.dilation_w * d.c;
  Best best{load(x), Mask{} + static_cast<int32_t>(rows.first * d.s + columns.first)};
  for (int64_t r = rows.first; r < rows.last; ++r, x += down) {
    const float* at = x;
    for (int64_t s = columns.first; s < columns.last; ++s, at += right)
      best.meet(load(at), static_cast<int32_t>(r * d.s + s));
  }
  store(y, best.value);
  store_index(index, best.place);
}

/// The same for a window of Size x Size neighbours that is all inside.
template <int Size, typename Index>
MEDMPI_INLINE void max_inside(int64_t down, int64_t right, const float* x, float* y, Index* index) {
  Best best{load(x), Mask{}};
#pragma GCC unroll 3
  for (int r = 0; r < Size; ++r)
#pragma GCC unroll 3
    for (int s = 0; s < Size; ++s) best.meet(load(x + r * down + s * right), r * Size + s);
  store(y, best.value);
  store_index(index, best.place);
}

template <typename Index>
MEDMPI_INLINE void max_value(const MaxPool& d, const Taps& rows, const Taps& columns, const float* x, float* y,
                             Index* index) {
  const int64_t down = d.dilation_h * d.w * d.c, right = d.dilation_w * d.c;
  float best = *x;
  int64_t place = rows.first * d.s + columns.first;
  for (int64_t r = rows.first; r < rows.last; ++r, x += down)
    for (int64_t s = columns.first; s < columns.last; ++s) {
      const float v = x[(s - columns.first) * right];
      if (v > best || v != v) {
        best = v;
        place = r * d.s + s;
      }
    }
  *y = best;
  *index = static_cast<Index>(place);
}

template <typename Index>
void max_as(const MaxPool& d, const float* x, float* y, Index* index) {
  const int64_t size = d.r == d.s && d.dilation_h == 1 && d.dilation_w == 1 ? d.r : 0;
#pragma omp parallel for schedule(static) if (d.n * d.p * d.q * d.c > 8192)
  for (int64_t row = 0; row < d.n * d.p; ++row) {
    const Taps rows = taps_inside(row % d.p, d.stride_h, d.pad_h, d.dilation_h, d.r, d.h);
    const float* image = x + (row / d.p * d.h + rows.position) * d.w * d.c;
    for (int64_t q = 0; q < d.q; ++q) {
      const Taps columns = taps_inside(q, d.stride_w, d.pad_w, d.dilation_w, d.s, d.w);
      const float* from = image + columns.position * d.c;
      const int64_t to = (row * d.q + q) * d.c;
      int64_t j = 0;
      if (rows.first >= rows.last || columns.first >= columns.last) {  // dilated taps that all fall beside the image
        for (; j < d.c; ++j) {
          y[to + j] = -__builtin_inff();
          index[to + j] = 0;
        }
        continue;
      }
      const bool inside = rows.last - rows.first == d.r && columns.last - columns.first == d.s;
      if (inside && size == 2)
        for (; j + kLanes <= d.c; j += kLanes) max_inside<2>(d.w * d.c, d.c, from + j, y + to + j, index + to + j);
      if (inside && size == 3)
        for (; j + kLanes <= d.c; j += kLanes) max_inside<3>(d.w * d.c, d.c, from + j, y + to + j, index + to + j);
      for (; j + kLanes <= d.c; j += kLanes) max_vector(d, rows, columns, from + j, y + to + j, index + to + j);
      for (; j < d.c; ++j) max_value(d, rows, columns, from + j, y + to + j, index + to + j);
    }
  }
}

/// dx (+)= dy where the maximum was at `place`.
template <bool kAdd, typename Index>
MEDMPI_INLINE void take(int64_t c, const float* dy, const Index* index, Index place, float* __restrict dx) {
  for (int64_t j = 0; j < c; ++j) {
    const float whole = dy[j];  // read in any case, so that the choice is a mask and not a branch
    const float g = index[j] == place ? whole : 0.0f;
    dx[j] = kAdd ? dx[j] + g : g;
  }
}

/// The windows that may hold an input: outputs first .. last-1.
MEDMPI_INLINE void windows_of(int64_t in, int64_t stride, int64_t pad, int64_t reach, int64_t out, int64_t* first,
                              int64_t* last) {
  // 32-bit division: sides are far below 2^31, and it takes a third of the time
  const auto step = static_cast<uint32_t>(stride);
  const int64_t low = in + pad - reach, high = static_cast<uint32_t>(in + pad) / step + 1;
  *first = low > 0 ? (static_cast<uint32_t>(low) + step - 1) / step : 0;
  *last = high < out ? high : out;
}

template <typename Index>
void max_backward_as(const MaxPool& d, const float* dy, const Index* index, float* dx) {
#pragma omp parallel for schedule(static) if (d.n * d.h * d.w * d.c > 8192)
  for (int64_t row = 0; row < d.n * d.h; ++row) {
    const int64_t h = row % d.h, n = row / d.h;
    int64_t p0, p1;
    windows_of(h, d.stride_h, d.pad_h, (d.r - 1) * d.dilation_h, d.p, &p0, &p1);
    for (int64_t w = 0; w < d.w; ++w) {
      float* to = dx + (row * d.w + w) * d.c;
      int64_t q0, q1;
      windows_of(w, d.stride_w, d.pad_w, (d.s - 1) * d.dilation_w, d.q, &q0, &q1);
      bool written = false;
      for (int64_t p = p0; p < p1; ++p) {
        const int64_t down = h + d.pad_h - p * d.stride_h;
        if (d.dilation_h > 1 && down % d.dilation_h) continue;
        for (int64_t q = q0; q < q1; ++q) {
          const int64_t right = w + d.pad_w - q * d.stride_w;
          if (d.dilation_w > 1 && right % d.dilation_w) continue;
          const auto place = static_cast<Index>((d.dilation_h > 1 ? down / d.dilation_h : down) * d.s +
                                                (d.dilation_w > 1 ? right / d.dilation_w : right));
          const int64_t from = ((n * d.p + p) * d.q + q) * d.c;
          if (written)
            take<true>(d.c, dy + from, index + from, place, to);
          else
            take<false>(d.c, dy + from, index + from, place, to);
          written = true;
        }
      }
      if (!written) std::memset(to, 0, static_cast<size_t>(d.c) * sizeof(float));
    }
  }
}

/// Sums of kVectors vectors of channels over a window, row by row: a row's sum is added as a whole, which loses less.
template <int kVectors>
MEDMPI_INLINE void average_vectors(int64_t rows, int64_t columns, int64_t down, int64_t right, float size,
                                   const float* x, float* y) {
  Vec sum[kVectors] = {};
  for (int64_t r = 0; r < rows; ++r, x += down) {
    Vec line[kVectors] = {};
    const float* at = x;
    for (int64_t s = 0; s < columns; ++s, at += right)
      for (int i = 0; i < kVectors; ++i) line[i] += load(at + i * kLanes);
    for (int i = 0; i < kVectors; ++i) sum[i] += line[i];
  }
  for (int i = 0; i < kVectors; ++i) store(y + i * kLanes, sum[i] / size);
}

/// The same for a window of Size x Size.
template <int Size>
MEDMPI_INLINE void average_square(int64_t down, int64_t right, float size, const float* x, float* y) {
  Vec sum{};
#pragma GCC unroll 3
  for (int r = 0; r < Size; ++r) {
    Vec line{};
#pragma GCC unroll 3
    for (int s = 0; s < Size; ++s) line += load(x + r * down + s * right);
    sum += line;
  }
  store(y, sum / size);
}

float average_value(int64_t rows, int64_t columns, int64_t down, int64_t right, float size, const float* x) {
  float sum = 0.0f;
  for (int64_t r = 0; r < rows; ++r, x += down) {
    float line = 0.0f;
    for (int64_t s = 0; s < columns; ++s) line += x[s * right];
    sum += line;
  }
  return sum / size;
}

void average(int64_t n, int64_t c, const Windows& down, const Windows& across, const float* x, float* y) {
#pragma omp parallel for schedule(static) if (n * down.in * across.in * c > 8192)
  for (int64_t row = 0; row < n * down.out; ++row) {
    const int64_t p = row % down.out, rows = down.end[p] - down.begin[p], line = across.in * c;
    const float* image = x + (row / down.out * down.in + down.begin[p]) * line;
    for (int64_t q = 0; q < across.out; ++q) {
      const int64_t columns = across.end[q] - across.begin[q];
      const float size = static_cast<float>(int64_t{down.size[p]} * across.size[q]);
      const float* from = image + across.begin[q] * c;
      float* to = y + (row * across.out + q) * c;
      int64_t j = 0;
      if (rows == 2 && columns == 2)
        for (; j + kLanes <= c; j += kLanes) average_square<2>(line, c, size, from + j, to + j);
      if (rows == 3 && columns == 3)
        for (; j + kLanes <= c; j += kLanes) average_square<3>(line, c, size, from + j, to + j);
      for (; j + 4 * kLanes <= c; j += 4 * kLanes) average_vectors<4>(rows, columns, line, c, size, from + j, to + j);
      for (; j + kLanes <= c; j += kLanes) average_vectors<1>(rows, columns, line, c, size, from + j, to + j);
      for (; j < c; ++j) to[j] = average_value(rows, columns, line, c, size, from + j);
    }
  }
}

void average_backward(int64_t n, int64_t c, const Windows& down, const Windows& across, const float* dy, float* dx) {
#pragma omp parallel for schedule(static) if (n * down.in * across.in * c > 8192)
  for (int64_t row = 0; row < n * down.in; ++row) {
    const int64_t h = row % down.in;
    const float* image = dy + row / down.in * down.out * across.out * c;
    for (int64_t w = 0; w < across.in; ++w) {
      float* __restrict to = dx + (row * across.in + w) * c;
      bool written = false;
      for (int64_t p = down.first[h]; p < down.last[h]; ++p)
        for (int64_t q = across.first[w]; q < across.last[w]; ++q) {
          const float* from = image + (p * across.out + q) * c;
          const float share = 1.0f / static_cast<float>(int64_t{down.size[p]} * across.size[q]);
          if (written)
            for (int64_t j = 0; j < c; ++j) to[j] += from[j] * share;
          else
            for (int64_t j = 0; j < c; ++j) to[j] = from[j] * share;
          written = true;
        }
      if (!written) std::memset(to, 0, static_cast<size_t>(c) * sizeof(float));
    }
  }
}

}  // namespace

extern const PoolOps pool;
const PoolOps pool = {max_as<uint8_t>,          max_as<int32_t>, max_backward_as<uint8_t>,
                      max_backward_as<int32_t>, average,         average_backward};

}  // namespace medmpi::MEDMPI_ISA
