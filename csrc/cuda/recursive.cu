#include "cuda/launch.cuh"
#include "ops/recursive.h"

namespace medmpi::cuda {

extern const RecursiveOps recursive;
const RecursiveOps recursive = {};

}  // namespace medmpi::cuda
