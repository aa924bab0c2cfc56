// Copies: bound by memory. Transposition goes through a tile on the stack, because rows of an image plane often lie a
// power of two apart and would drive each other out of the first-level cache.
#include "ops/copy.h"

#include "cpu/simd.h"
#include "cpu/threads.h"

namespace medmpi::MEDMPI_ISA {
namespace {

constexpr int64_t kChunk = 1 << 15;

MEDMPI_INLINE void copy_values(int64_t n, const float* x, float* y) {
  std::memcpy(y, x, static_cast<size_t>(n) * sizeof(float));
}
MEDMPI_INLINE void fill_values(int64_t n, float value, float* y) {
  for (int64_t i = 0; i < n; ++i) y[i] = value;
}

/// Rows of a chunk of about kChunk values.
MEDMPI_INLINE int64_t rows_per_chunk(int64_t width) { return width < kChunk ? kChunk / (width > 0 ? width : 1) : 1; }

/// Short rows are copied by vectors here: memcpy is a call, and a loop would be turned into one.
MEDMPI_INLINE void copy_row(int64_t n, const float* x, float* y) {
  if (n > 512 || n < kLanes) {
    copy_values(n, x, y);
    return;
  }
  for (int64_t i = 0; i + kLanes <= n; i += kLanes) store(y + i, load(x + i));
  store(y + n - kLanes, load(x + n - kLanes));  // overlaps what is there already
}

int64_t sum_of_widths(int64_t count, const int64_t* width) {
  int64_t sum = 0;
  for (int64_t k = 0; k < count; ++k) sum += width[k];
  return sum;
}

/// All parts of a row at once: part by part, half-written lines would travel twice.
void join(int64_t rows, int64_t count, const int64_t* width, const float* const* xs, float* y) {
  const int64_t line = sum_of_widths(count, width);
  for_chunks(rows, rows_per_chunk(line), [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      float* to = y + i * line;
      for (int64_t k = 0; k < count; to += width[k++]) copy_row(width[k], xs[k] + i * width[k], to);
    }
  });
}

void cut(int64_t rows, int64_t count, const int64_t* width, const float* x, float* const* ys) {
  const int64_t line = sum_of_widths(count, width);
  for_chunks(rows, rows_per_chunk(line), [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const float* from = x + i * line;
      for (int64_t k = 0; k < count; from += width[k++]) copy_row(width[k], from, ys[k] + i * width[k]);
    }
  });
}

void pad(int64_t n, int64_t h, int64_t w, int64_t c, int64_t top, int64_t bottom, int64_t left, int64_t right,
         float value, const float* x, float* y) {
  const int64_t p = top + h + bottom, line = (left + w + right) * c;
  for_chunks(n * p, rows_per_chunk(line), [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i % p - top;
      float* to = y + i * line;
      if (row < 0 || row >= h) {
        fill_values(line, value, to);
        continue;
      }
      fill_values(left * c, value, to);
      copy_values(w * c, x + (i / p * h + row) * w * c, to + left * c);
      fill_values(right * c, value, to + (left + w) * c);
    }
  });
}

void crop(int64_t n, int64_t h, int64_t w, int64_t c, int64_t top, int64_t left, int64_t p, int64_t q, const float* x,
          float* y) {
  for_chunks(n * p, rows_per_chunk(q * c), [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      copy_values(q * c, x + ((i / p * h + top + i % p) * w + left) * c, y + i * q * c);
  });
}

void transpose(int64_t n, int64_t rows, int64_t columns, const float* x, float* y) {
  constexpr int64_t kTile = 16;
  const int64_t bands = (columns + kTile - 1) / kTile;
  for_chunks(n * bands, rows_per_chunk(rows * kTile), [=](int64_t begin, int64_t end) {
    float tile[kTile * kTile];
    for (int64_t band = begin; band < end; ++band) {
      const float* from = x + band / bands * rows * columns;
      float* to = y + band / bands * rows * columns;
      const int64_t k0 = band % bands * kTile, width = columns - k0 < kTile ? columns - k0 : kTile;
      for (int64_t j0 = 0; j0 < rows; j0 += kTile) {
        const int64_t height = rows - j0 < kTile ? rows - j0 : kTile;
        for (int64_t j = 0; j < height; ++j)
          if (width == kTile)
            copy_values(kTile, from + (j0 + j) * columns + k0, tile + j * kTile);
          else
            for (int64_t k = 0; k < width; ++k) tile[j * kTile + k] = from[(j0 + j) * columns + k0 + k];
        for (int64_t k = 0; k < width; ++k)
          for (int64_t j = 0; j < height; ++j) to[(k0 + k) * rows + j0 + j] = tile[j * kTile + k];
      }
    }
  });
}

}  // namespace

extern const CopyOps copy;
const CopyOps copy = {join, cut, pad, crop, transpose};

}  // namespace medmpi::MEDMPI_ISA
