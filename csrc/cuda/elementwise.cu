#include "cuda/launch.cuh"
#include "ops/elementwise.h"

namespace medmpi::cuda {

extern const ElementwiseOps elementwise;
const ElementwiseOps elementwise = {};

}  // namespace medmpi::cuda
