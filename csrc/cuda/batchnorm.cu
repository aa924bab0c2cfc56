#include "cuda/launch.cuh"
#include "ops/batchnorm.h"

namespace medmpi::cuda {

extern const BatchNormOps batchnorm;
const BatchNormOps batchnorm = {};

}  // namespace medmpi::cuda
