#pragma once
#include "cuda/fast_division.cuh"
#include "ops/conv2d.h"

namespace medmpi::cuda {

/// A convolution's sizes as kernels of one thread for each result want them.
struct Grouped {
  int h, w, c, r, s, k, group_c, group_k, stride_h, stride_w, dilation_h, dilation_w, pad_top, pad_left;
  int out_h, out_w, pixels, out_pixels;                                // pixels of all images
  FastDivision image, row, out_image, out_row, per_filter, per_group;  // h w, w, out_h out_w, out_w, group_k, group_c

  explicit Grouped(const Conv2dShape& g);
};

// Many small groups, any sizes, in float32 whatever the precision: such layers are bound by memory.
void grouped_forward(const Conv2dShape& g, const float* x, const float* weight, const float* bias,
                     const float* residual, bool relu, float* y);
void grouped_backward_data(const Conv2dShape& g, const float* dy, const float* weight, const float* bias, float* dx);
void grouped_backward_weight(const Conv2dShape& g, const float* dy, const float* x, float* dweight);

// One filter for each channel, 3 x 3 or 5 x 5, stride 1 or 2, dilation 1, channels in fours. False: not that, nothing
// done; of backward-data stride 1 only.
bool depthwise_forward(const Conv2dShape& g, const float* x, const float* weight, const float* bias,
                       const float* residual, bool relu, float* y);
bool depthwise_backward_data(const Conv2dShape& g, const float* dy, const float* weight, const float* bias, float* dx);
bool depthwise_backward_weight(const Conv2dShape& g, const float* dy, const float* x, float* dweight);

}  // namespace medmpi::cuda
