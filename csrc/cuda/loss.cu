#include "cuda/launch.cuh"
#include "ops/loss.h"

namespace medmpi::cuda {

extern const LossOps loss;
const LossOps loss = {};

}  // namespace medmpi::cuda
