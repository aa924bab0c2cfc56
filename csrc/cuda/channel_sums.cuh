#pragma once
#include <cstdint>

namespace medmpi::cuda {

/// sums[j] += sum over the rows of a (rows, channels) array.
void sum_channels(int64_t rows, int64_t channels, const float* values, float* sums);
/// Mean and sum of squared deviations of each channel of a (rows, channels) array.
void channel_moments(int64_t rows, int64_t channels, const float* values, double* mean, double* m2);
/// The same from those of tiles of `rows_per_tile` rows (the last may be shorter), arrays (tiles, channels).
void merge_tile_moments(int64_t rows, int64_t rows_per_tile, int64_t channels, const double* means,
                        const double* squares, double* mean, double* m2);

}  // namespace medmpi::cuda
