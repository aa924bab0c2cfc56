#include "cuda/launch.cuh"
#include "ops/resize.h"

namespace medmpi::cuda {

extern const ResizeOps resize;
const ResizeOps resize = {};

}  // namespace medmpi::cuda
