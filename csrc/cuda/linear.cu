// The fully connected layer: convolutions of images of one pixel.
#include "ops/conv2d.h"
#include "ops/linear.h"

namespace medmpi::cuda {

extern const Conv2dOps conv2d;

namespace {

Conv2dShape pixels_of(const LinearShape& g) { return {g.m, 1, 1, g.c, 1, 1, g.k, 1, 1, 1, 1, 1, 0, 0, 0, 0}; }

void forward(const LinearShape& g, const float* x, const float* weight, const float* bias, float* y) {
  conv2d.forward(pixels_of(g), Conv2dAlgo::kAuto, x, weight, {bias, nullptr, false, nullptr, nullptr}, y);
}

void backward_data(const LinearShape& g, const float* dy, const float* weight, float* dx) {
  conv2d.backward_data(pixels_of(g), Conv2dAlgo::kAuto, dy, weight, nullptr, dx);
}

void backward_weight(const LinearShape& g, const float* dy, const float* x, float* dweight) {
  conv2d.backward_weight(pixels_of(g), Conv2dAlgo::kAuto, dy, x, dweight);
}

void backward_bias(const LinearShape& g, const float* dy, float* dbias) { conv2d.sum_channels(g.m, g.k, dy, dbias); }

}  // namespace

extern const LinearOps linear;
const LinearOps linear = {forward, backward_data, backward_weight, backward_bias};

}  // namespace medmpi::cuda
