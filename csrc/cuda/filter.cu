#include "cuda/launch.cuh"
#include "ops/filter.h"

namespace medmpi::cuda {

extern const FilterOps filter;
const FilterOps filter = {};

}  // namespace medmpi::cuda
