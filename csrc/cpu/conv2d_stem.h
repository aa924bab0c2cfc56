#pragma once
#include "cpu/conv2d_finish.h"

namespace medmpi::MEDMPI_ISA {

/// Whether a convolution reads so few channels that all taps of a filter row make a vector or two, as a network's first
/// layer does.
constexpr bool is_stem(const Conv2dShape& g) { return g.groups == 1 && g.c <= 8 && g.s > 1 && g.dilation_w == 1; }

/// y = max(conv(x, weight) + bias, 0 or -inf), where is_stem.
void conv2d_stem_forward(const Conv2dShape& shape, const float* x, const float* weight, const Epilogue& e, float* y);

/// dx = conv^T(dy, weight) + bias, where is_stem.
void conv2d_stem_backward_data(const Conv2dShape& shape, const float* dy, const float* weight, const float* bias,
                               float* dx);

}  // namespace medmpi::MEDMPI_ISA
