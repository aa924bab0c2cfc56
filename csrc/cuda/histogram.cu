#include "cuda/launch.cuh"
#include "ops/histogram.h"

namespace medmpi::cuda {

extern const HistogramOps histogram;
const HistogramOps histogram = {};

}  // namespace medmpi::cuda
