#pragma once
#include "ops/conv2d.h"

namespace medmpi::MEDMPI_ISA {

/// dweight += the gradient of a convolution for its weight, any shape.
void conv2d_backward_weight(const Conv2dShape& shape, const float* dy, const float* x, float* dweight);

}  // namespace medmpi::MEDMPI_ISA
