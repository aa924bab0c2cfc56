// Forward products of convolutions.
#include "cuda/conv2d_launch.cuh"

namespace medmpi::cuda {

void conv2d_forward_product(const Product& p, double* mean, double* m2) { run_product<true>(p, mean, m2); }

}  // namespace medmpi::cuda
