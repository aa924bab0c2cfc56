// Products of convolutions for the gradient of their input.
#include "cuda/conv2d_launch.cuh"

namespace medmpi::cuda {

void conv2d_data_product(const Product& p) { run_product<false>(p, nullptr, nullptr); }

}  // namespace medmpi::cuda
