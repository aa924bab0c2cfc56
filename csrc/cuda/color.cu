#include "cuda/launch.cuh"
#include "ops/color.h"

namespace medmpi::cuda {

extern const ColorOps color;
const ColorOps color = {};

}  // namespace medmpi::cuda
