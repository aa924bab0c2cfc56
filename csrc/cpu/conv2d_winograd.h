#pragma once
#include "cpu/conv2d_finish.h"

namespace medmpi::MEDMPI_ISA {

/// Whether F(4x4, 3x3) should compute this convolution: enough channels to vectorise over and few wasted outputs.
/// Depends on the layer, never on the batch size or on threads, so that a sample's result does not either.
bool conv2d_winograd_pays(const Conv2dShape& shape);

/// y = max(conv(x, weight) + bias, 0 or -inf).
void conv2d_winograd_forward(const Conv2dShape& shape, const float* x, const float* weight, const Epilogue& e,
                             float* y);

/// dx = conv^T(dy, weight) + bias + before, the last two null or as wanted; `before` may be dx.
void conv2d_winograd_backward_data(const Conv2dShape& shape, const float* dy, const float* weight, const float* bias,
                                   const float* before, float* dx);

}  // namespace medmpi::MEDMPI_ISA
