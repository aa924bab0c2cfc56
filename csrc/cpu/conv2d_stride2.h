#pragma once
#include "cpu/conv2d_finish.h"

namespace medmpi::MEDMPI_ISA {

/// Whether the fast algorithm should compute this convolution: a 3x3 filter of stride 2, enough channels to vectorise
/// over and few wasted outputs. Depends on the layer, never on the batch size or on threads.
bool conv2d_stride2_pays(const Conv2dShape& shape);

/// y = max(conv(x, weight) + bias, 0 or -inf).
void conv2d_stride2_forward(const Conv2dShape& shape, const float* x, const float* weight, const Epilogue& e, float* y);

/// dx = conv^T(dy, weight) + bias.
void conv2d_stride2_backward_data(const Conv2dShape& shape, const float* dy, const float* weight, const float* bias,
                                  float* dx);

}  // namespace medmpi::MEDMPI_ISA
