// Sums and moments of each channel over all pixels. A block takes 32 channels of a tile of rows, whose size follows
// from the array's alone; a second kernel adds the tiles in a fixed order, in float64.
#include "cuda/channel_sums.cuh"
#include "cuda/launch.cuh"

namespace medmpi::cuda {
namespace {

constexpr int kChannels = 32, kTogether = 8;  // threads of a block: channels x rows
constexpr int kSlotTiles = 2;                 // scratch
constexpr int64_t kBlocks = 1024;

int64_t rows_per_tile(int64_t rows, int64_t channels) {
  const int64_t tiles = (kBlocks * kChannels + channels - 1) / channels;
  const int64_t each = (rows + tiles - 1) / tiles;
  return each < 8 * kTogether ? 8 * kTogether : each;
}

// Grids: x blocks of channels, y tiles of rows.

/// The sum of a channel's kTogether values, for all its threads; `table` is the block's.
__device__ double over_threads(double value, double (&table)[kTogether][kChannels]) {
  table[threadIdx.y][threadIdx.x] = value;
  __syncthreads();
  double sum = 0.0;
  for (int i = 0; i < kTogether; ++i) sum += table[i][threadIdx.x];
  __syncthreads();
  return sum;
}

__global__ void sum_tiles(int64_t rows, int64_t per_tile, int64_t channels, const float* values, double* sums) {
  __shared__ double table[kTogether][kChannels];
  const int64_t channel = static_cast<int64_t>(blockIdx.x) * kChannels + threadIdx.x, first = blockIdx.y * per_tile;
  const int64_t end = first + per_tile < rows ? first + per_tile : rows;
  double total = 0.0;
  if (channel < channels)
    for (int64_t row = first + threadIdx.y; row < end;) {
      float sum = 0.0f;  // short sums in float32
      for (int i = 0; i < 32 && row < end; ++i, row += kTogether) sum += values[row * channels + channel];
      total += static_cast<double>(sum);
    }
  total = over_threads(total, table);
  if (threadIdx.y == 0 && channel < channels) sums[blockIdx.y * channels + channel] = total;
}

__global__ void add_sums(int64_t tiles, int64_t channels, const double* tile_sums, float* sums) {
  __shared__ double table[kTogether][kChannels];
  const int64_t channel = static_cast<int64_t>(blockIdx.x) * kChannels + threadIdx.x;
  double total = 0.0;
  if (channel < channels)
    for (int64_t tile = threadIdx.y; tile < tiles; tile += kTogether) total += tile_sums[tile * channels + channel];
  total = over_threads(total, table);
  if (threadIdx.y == 0 && channel < channels) sums[channel] += static_cast<float>(total);
}

/// Deviations are from the tile's first row, so that little is lost where the spread is small.
__global__ void tile_moments(int64_t rows, int64_t per_tile, int64_t channels, const float* values, double* means,
                             double* squares) {
  __shared__ double table[kTogether][kChannels];
  const int64_t channel = static_cast<int64_t>(blockIdx.x) * kChannels + threadIdx.x, first = blockIdx.y * per_tile;
  const int64_t end = first + per_tile < rows ? first + per_tile : rows;
  double total = 0.0, total_squares = 0.0;
  float shift = 0.0f;
  if (channel < channels) {
    shift = values[first * channels + channel];
    for (int64_t row = first + threadIdx.y; row < end;) {
      float sum = 0.0f, sum_squares = 0.0f;
      for (int i = 0; i < 32 && row < end; ++i, row += kTogether) {
        const float d = values[row * channels + channel] - shift;
        sum += d;
        sum_squares += d * d;
      }
      total += static_cast<double>(sum);
      total_squares += static_cast<double>(sum_squares);
    }
  }
  total = over_threads(total, table);
  total_squares = over_threads(total_squares, table);
  if (threadIdx.y != 0 || channel >= channels) return;
  const double n = static_cast<double>(end - first), rest = total_squares - total * total / n;
  means[blockIdx.y * channels + channel] = static_cast<double>(shift) + total / n;
  squares[blockIdx.y * channels + channel] = rest < 0.0 ? 0.0 : rest;
}

__global__ void merge_moments(int64_t rows, int64_t per_tile, int64_t channels, const double* means,
                              const double* squares, double* mean, double* m2) {
  __shared__ double table[kTogether][kChannels];
  const int64_t channel = static_cast<int64_t>(blockIdx.x) * kChannels + threadIdx.x;
  const int64_t tiles = (rows + per_tile - 1) / per_tile;
  const auto rows_of = [&](int64_t tile) {
    return static_cast<double>(tile == tiles - 1 ? rows - tile * per_tile : per_tile);
  };
  const double origin = channel < channels ? means[channel] : 0.0;
  double sum = 0.0, sum_squares = 0.0;
  if (channel < channels)
    for (int64_t tile = threadIdx.y; tile < tiles; tile += kTogether)
      sum += rows_of(tile) * (means[tile * channels + channel] - origin);
  const double centre = over_threads(sum, table) / static_cast<double>(rows);
  if (channel < channels)
    for (int64_t tile = threadIdx.y; tile < tiles; tile += kTogether) {
      const double d = means[tile * channels + channel] - origin - centre;
      sum_squares += squares[tile * channels + channel] + rows_of(tile) * d * d;
    }
  sum_squares = over_threads(sum_squares, table);
  if (threadIdx.y != 0 || channel >= channels) return;
  mean[channel] = origin + centre;
  m2[channel] = sum_squares;
}

dim3 tile_grid(int64_t rows, int64_t per_tile, int64_t channels) {
  return dim3(static_cast<unsigned>((channels + kChannels - 1) / kChannels),
              static_cast<unsigned>((rows + per_tile - 1) / per_tile));
}

double* tile_scratch(const dim3& grid, int64_t channels, int arrays) {
  return static_cast<double*>(device_scratch(
      kSlotTiles, sizeof(double) * grid.y * static_cast<size_t>(channels) * static_cast<size_t>(arrays)));
}

}  // namespace

void sum_channels(int64_t rows, int64_t channels, const float* values, float* sums) {
  if (rows == 0 || channels == 0) return;
  const int64_t per_tile = rows_per_tile(rows, channels);
  const dim3 grid = tile_grid(rows, per_tile, channels), block(kChannels, kTogether);
  double* tiles = tile_scratch(grid, channels, 1);
  launch(sum_tiles, grid, block, 0, rows, per_tile, channels, values, tiles);
  launch(add_sums, grid.x, block, 0, int64_t{grid.y}, channels, tiles, sums);
}

void merge_tile_moments(int64_t rows, int64_t rows_per_tile, int64_t channels, const double* means,
                        const double* squares, double* mean, double* m2) {
  launch(merge_moments, blocks_for(channels, kChannels), dim3(kChannels, kTogether), 0, rows, rows_per_tile, channels,
         means, squares, mean, m2);
}

void channel_moments(int64_t rows, int64_t channels, const float* values, double* mean, double* m2) {
  const int64_t per_tile = rows_per_tile(rows, channels);
  const dim3 grid = tile_grid(rows, per_tile, channels);
  double* means = tile_scratch(grid, channels, 2);
  double* squares = means + grid.y * channels;
  launch(tile_moments, grid, dim3(kChannels, kTogether), 0, rows, per_tile, channels, values, means, squares);
  merge_tile_moments(rows, per_tile, channels, means, squares, mean, m2);
}

}  // namespace medmpi::cuda
