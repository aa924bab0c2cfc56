#pragma once
#include "cpu/conv2d_finish.h"

namespace medmpi::MEDMPI_ISA {

/// Whether each channel has one filter of its own, which the functions below need.
constexpr bool is_depthwise(const Conv2dShape& g) { return g.groups > 1 && g.groups == g.c && g.k == g.c; }

/// y = conv(x, weight) + bias, then max(y, 0) if `relu`; bias may be null.
void depthwise_forward(const Conv2dShape& g, const float* x, const float* weight, const Epilogue& e, float* y);
/// dx = conv^T(dy, weight) + bias; bias may be null.
void depthwise_backward_data(const Conv2dShape& g, const float* dy, const float* weight, const float* bias, float* dx);
/// dweight += the gradient for the weight.
void depthwise_backward_weight(const Conv2dShape& g, const float* dy, const float* x, float* dweight);

}  // namespace medmpi::MEDMPI_ISA
