#include "cuda/launch.cuh"
#include "ops/pool.h"

namespace medmpi::cuda {

extern const PoolOps pool;
const PoolOps pool = {};

}  // namespace medmpi::cuda
