#pragma once
#include "cpu/conv2d_finish.h"

namespace medmpi::MEDMPI_ISA {

/// Whether the functions below can compute it: a 1x1 filter, one group, no padding that a window meets.
bool is_pointwise(const Conv2dShape& g);

/// y = max(conv(x, weight) + bias, 0 or -inf).
void pointwise_forward(const Conv2dShape& g, const float* x, const float* weight, const Epilogue& e, float* y);

/// dx = conv^T(dy, weight) + bias.
void pointwise_backward_data(const Conv2dShape& g, const float* dy, const float* weight, const float* bias, float* dx);
/// Whether pointwise_forward can add the epilogue's residual in its pass.
bool adds_residual(const Conv2dShape& g);
/// As Conv2dOps::backward_data_onto.
bool pointwise_backward_data_onto(const Conv2dShape& g, const float* dy, const float* weight, const float* before,
                                  float* dx);

/// dweight += the gradient for the weight.
void pointwise_backward_weight(const Conv2dShape& g, const float* dy, const float* x, float* dweight);

}  // namespace medmpi::MEDMPI_ISA
