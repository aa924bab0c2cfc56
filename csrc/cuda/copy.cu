#include "cuda/launch.cuh"
#include "ops/copy.h"

namespace medmpi::cuda {

extern const CopyOps copy;
const CopyOps copy = {};

}  // namespace medmpi::cuda
