#pragma once
#include "cpu/conv2d_finish.h"
#include "cpu/depthwise_rows.h"

namespace medmpi::MEDMPI_ISA {

/// Whether a depthwise convolution is a 3x3 one of stride 2, which the functions below need.
constexpr bool is_depthwise_stride2(const Conv2dShape& g) {
  return g.r == 3 && g.s == 3 && g.stride_h == 2 && g.stride_w == 2 && g.dilation_h == 1 && g.dilation_w == 1;
}

/// y = conv(x, weight) + bias, then max(y, 0) if `relu`; bias may be null.
void depthwise_stride2_forward(const Conv2dShape& g, const float* x, const float* weight, const Epilogue& e, float* y);
/// dx = conv^T(dy, weight) + bias; bias may be null.
void depthwise_stride2_backward_data(const Conv2dShape& g, const float* dy, const float* weight, const float* bias,
                                     float* dx);
/// Output rows [i0, i1) of one image: sums[9][c] += the products with x.
void depthwise_stride2_weight_rows(const Walk& k, int64_t i0, int64_t i1, const float* image, const float* dy,
                                   float* sums);

}  // namespace medmpi::MEDMPI_ISA
