#pragma once
#include "cpu/conv2d_finish.h"

namespace medmpi::MEDMPI_ISA {

/// y = max(conv(x, weight) + bias, 0 or -inf), any shape.
void conv2d_direct_forward(const Conv2dShape& shape, const float* x, const float* weight, const Epilogue& e, float* y);

/// dx = conv^T(dy, weight) + bias, any shape.
void conv2d_direct_backward_data(const Conv2dShape& shape, const float* dy, const float* weight, const float* bias,
                                 float* dx);

}  // namespace medmpi::MEDMPI_ISA
