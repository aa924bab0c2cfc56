#pragma once
#include "ops/conv2d.h"

namespace medmpi::MEDMPI_ISA {

/// Whether the shape can be done by the function below (3x3, stride and dilation 1, one group), and faster than
/// directly.
bool winograd_weight_pays(const Conv2dShape& g);

/// dweight += the gradient of a 3x3 convolution for its weight, by Winograd's F(3x3, 4x4).
void winograd_backward_weight(const Conv2dShape& g, const float* dy, const float* x, float* dweight);

}  // namespace medmpi::MEDMPI_ISA
