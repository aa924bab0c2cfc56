#include "cuda/launch.cuh"
#include "ops/linear.h"

namespace medmpi::cuda {

extern const LinearOps linear;
const LinearOps linear = {};

}  // namespace medmpi::cuda
