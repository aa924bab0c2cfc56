#pragma once
#include "cuda/conv2d_tile.cuh"

namespace medmpi::cuda {

/// dweight += the gradient for the filters: `lattice` is the outputs with all taps.
struct WeightProduct {
  Source source;
  Lattice lattice;
  const void* dy;  // as the source
  float* dweight;
  int64_t pixel;  // output channels of all groups
  int channels;   // of a group
  int groups, splits;
  bool by_fours;
  float* parts;  // (blocks, splits) tiles where the depth is split
};

/// Runs the product, with float32 operands; splits, by_fours and parts are its own affair.
void conv2d_weight_product(WeightProduct p);

}  // namespace medmpi::cuda
