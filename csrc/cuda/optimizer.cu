#include "cuda/launch.cuh"
#include "ops/optimizer.h"

namespace medmpi::cuda {

extern const OptimizerOps optimizer;
const OptimizerOps optimizer = {};

}  // namespace medmpi::cuda
