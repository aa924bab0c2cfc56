#include "cuda/launch.cuh"
#include "ops/clahe.h"

namespace medmpi::cuda {

extern const ClaheOps clahe;
const ClaheOps clahe = {};

}  // namespace medmpi::cuda
