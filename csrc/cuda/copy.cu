// Copies: concatenation, padding, cropping, transposition.
#include <cstring>

#include "cuda/block.cuh"
#include "cuda/rows.cuh"
#include "ops/copy.h"

namespace medmpi::cuda {
namespace {

/// `rows` rows of `width` packs between arrays whose rows lie `from_pitch` and `to_pitch` packs apart.
template <int Wide, typename Index>
__global__ void __launch_bounds__(kThreads)
    copy_rows(int64_t count, int64_t width, int64_t from_pitch, int64_t to_pitch, const float* x, float* y) {
  for (int64_t i = first_of_grid(); i < count; i += size_of_grid()) {
    const auto at = static_cast<Index>(i), w = static_cast<Index>(width), row = at / w, column = at - row * w;
    store_pack<Wide>(y + (static_cast<int64_t>(row) * to_pitch + column) * Wide,
                     load_pack<Wide>(x + (static_cast<int64_t>(row) * from_pitch + column) * Wide));
  }
}

void copy_part(int64_t rows, int64_t width, const float* x, int64_t from_pitch, float* y, int64_t to_pitch) {
  if (rows <= 0 || width <= 0) return;
  const bool wide = width % 4 == 0 && from_pitch % 4 == 0 && to_pitch % 4 == 0 && aligned16(x) && aligned16(y);
  const int64_t each = wide ? 4 : 1, count = rows * width / each;
  const bool small = count < int64_t{1} << 31;
  const auto kernel = wide ? (small ? copy_rows<4, uint32_t> : copy_rows<4, uint64_t>)
                           : (small ? copy_rows<1, uint32_t> : copy_rows<1, uint64_t>);
  launch(kernel, blocks_for(count, kThreads), kThreads, 0, count, width / each, from_pitch / each, to_pitch / each, x,
         y);
}

int64_t sum_of_widths(int64_t count, const int64_t* width) {
  int64_t sum = 0;
  for (int64_t k = 0; k < count; ++k) sum += width[k];
  return sum;
}

void join(int64_t rows, int64_t count, const int64_t* width, const float* const* xs, float* y) {
  const int64_t line = sum_of_widths(count, width);
  for (int64_t k = 0; k < count; y += width[k++]) copy_part(rows, width[k], xs[k], width[k], y, line);
}

void cut(int64_t rows, int64_t count, const int64_t* width, const float* x, float* const* ys) {
  const int64_t line = sum_of_widths(count, width);
  for (int64_t k = 0; k < count; x += width[k++]) copy_part(rows, width[k], x, line, ys[k], width[k]);
}

/// Pixels of y (n, p, q, c), of which pixel (i, j) is pixel (i - top, j - left) of x (n, h, w, c), `value` outside.
struct Moved {
  int64_t p, q, h, w, top, left, c;
  float value;
};

template <int Wide, typename Index>
__global__ void __launch_bounds__(kThreads) move_pixels(int64_t count, Moved m, const float* x, float* y) {
  for (int64_t i = first_of_grid(); i < count; i += size_of_grid()) {
    const auto groups = static_cast<Index>(m.c / Wide), q = static_cast<Index>(m.q), p = static_cast<Index>(m.p);
    auto rest = static_cast<Index>(i);
    const Index channel = rest % groups;
    rest /= groups;
    const int64_t column = static_cast<int64_t>(rest % q) - m.left;
    rest /= q;
    const int64_t row = static_cast<int64_t>(rest % p) - m.top;
    const auto image = static_cast<int64_t>(rest / p);
    Pack<Wide> v;
    if (row >= 0 && row < m.h && column >= 0 && column < m.w) {
      v = load_pack<Wide>(x + ((image * m.h + row) * m.w + column) * m.c + static_cast<int64_t>(channel) * Wide);
    } else {
#pragma unroll
      for (int k = 0; k < Wide; ++k) v.v[k] = m.value;
    }
    store_pack<Wide>(y + i * Wide, v);
  }
}

void move(int64_t n, const Moved& m, const float* x, float* y) {
  const int64_t total = n * m.p * m.q * m.c;
  if (total <= 0) return;
  const bool wide = wide_rows(m.c, x, y);
  const int64_t count = wide ? total / 4 : total;
  const bool small = count < int64_t{1} << 31;
  const auto kernel = wide ? (small ? move_pixels<4, uint32_t> : move_pixels<4, uint64_t>)
                           : (small ? move_pixels<1, uint32_t> : move_pixels<1, uint64_t>);
  launch(kernel, blocks_for(count, kThreads), kThreads, 0, count, m, x, y);
}

void pad(int64_t n, int64_t h, int64_t w, int64_t c, int64_t top, int64_t bottom, int64_t left, int64_t right,
         float value, const float* x, float* y) {
  move(n, {top + h + bottom, left + w + right, h, w, top, left, c, value}, x, y);
}

void crop(int64_t n, int64_t h, int64_t w, int64_t c, int64_t top, int64_t left, int64_t p, int64_t q, const float* x,
          float* y) {
  move(n, {p, q, h, w, -top, -left, c, 0.0f}, x, y);
}

// --- transposition --------------------------------------------------------------------------------------------------

constexpr int kTile = 32, kTileRows = static_cast<int>(kThreads) / kTile;

/// Tiles of 32 x 32 through shared memory, so that both sides are whole lines.
__global__ void __launch_bounds__(kThreads) transpose_tiles(int64_t tiles, int64_t across, int64_t down, int64_t rows,
                                                            int64_t columns, const float* x, float* y) {
  SHARED_ARRAY(float, tile, [kTile][kTile + 1]);
  const int lane = static_cast<int>(threadIdx.x) % kTile, first = static_cast<int>(threadIdx.x) / kTile;
  for (int64_t t = blockIdx.x; t < tiles; t += gridDim.x) {
    const int64_t k0 = t % across * kTile, j0 = t / across % down * kTile, image = t / across / down * rows * columns;
    __syncthreads();  // the tile may still be read
#pragma unroll
    for (int j = first; j < kTile; j += kTileRows)
      if (j0 + j < rows && k0 + lane < columns) tile[j][lane] = x[image + (j0 + j) * columns + k0 + lane];
    __syncthreads();
#pragma unroll
    for (int k = first; k < kTile; k += kTileRows)
      if (k0 + k < columns && j0 + lane < rows) y[image + (k0 + k) * rows + j0 + lane] = tile[lane][k];
  }
}

/// Few rows or few columns, as of images with few channels: consecutive threads write consecutive values.
template <typename Index>
__global__ void __launch_bounds__(kThreads)
    transpose_values(int64_t count, int64_t rows, int64_t columns, const float* x, float* y) {
  for (int64_t i = first_of_grid(); i < count; i += size_of_grid()) {
    const auto size = static_cast<Index>(rows * columns), height = static_cast<Index>(rows);
    const Index image = static_cast<Index>(i) / size, at = static_cast<Index>(i) - image * size;
    const Index k = at / height, j = at - k * height;
    y[i] = x[i - static_cast<int64_t>(at) + static_cast<int64_t>(j) * columns + k];
  }
}

void transpose(int64_t n, int64_t rows, int64_t columns, const float* x, float* y) {
  const int64_t count = n * rows * columns;
  if (count <= 0) return;
  if (rows <= 8 || columns <= 8) {
    launch(count < int64_t{1} << 31 ? transpose_values<uint32_t> : transpose_values<uint64_t>,
           blocks_for(count, kThreads), kThreads, 0, count, rows, columns, x, y);
    return;
  }
  const int64_t across = (columns + kTile - 1) / kTile, down = (rows + kTile - 1) / kTile, tiles = n * across * down;
  launch(transpose_tiles, blocks_for(tiles, 1), kThreads, 0, tiles, across, down, rows, columns, x, y);
}

}  // namespace

extern const CopyOps copy;
const CopyOps copy = {join, cut, pad, crop, transpose};

}  // namespace medmpi::cuda
