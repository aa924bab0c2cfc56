#pragma once
#include <cstdint>

namespace medmpi::cuda {

/// Adds the `splits` parts of each of `tiles` tiles of `size` values (a multiple of 4), in order, into its first part.
void add_parts(float* parts, int64_t tiles, int splits, int64_t size);

}  // namespace medmpi::cuda
