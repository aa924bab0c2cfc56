#include "cuda/launch.cuh"
#include "ops/warp.h"

namespace medmpi::cuda {

extern const WarpOps warp;
const WarpOps warp = {};

}  // namespace medmpi::cuda
