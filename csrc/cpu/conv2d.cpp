// The convolution family's table: who computes what, and sums over pixels.
#include "ops/conv2d.h"

#include "cpu/conv2d_direct.h"
#include "cpu/conv2d_finish.h"
#include "cpu/conv2d_pointwise.h"
#include "cpu/conv2d_stem.h"
#include "cpu/conv2d_stride2.h"
#include "cpu/conv2d_weight.h"
#include "cpu/conv2d_winograd.h"
#include "cpu/depthwise.h"
#include "cpu/simd.h"
#include "cpu/threads.h"
#include "cpu/winograd_weight.h"
#include "ops/scratch.h"

namespace medmpi::MEDMPI_ISA {
namespace {

constexpr int kSlotSums = 0;  // of the calling thread: partial sums over rows

bool by_winograd(const Conv2dShape& shape, Conv2dAlgo algo) {
  return algo == Conv2dAlgo::kWinograd || (algo == Conv2dAlgo::kAuto && conv2d_winograd_pays(shape));
}

void forward_by(const Conv2dShape& shape, Conv2dAlgo algo, const float* x, const float* weight, const Epilogue& e,
                float* y) {
  if (is_depthwise(shape)) return depthwise_forward(shape, x, weight, e, y);
  if (by_winograd(shape, algo)) return conv2d_winograd_forward(shape, x, weight, e, y);
  if (is_pointwise(shape)) return pointwise_forward(shape, x, weight, e, y);
  if (algo == Conv2dAlgo::kAuto && conv2d_stride2_pays(shape)) return conv2d_stride2_forward(shape, x, weight, e, y);
  if (is_stem(shape)) return conv2d_stem_forward(shape, x, weight, e, y);
  conv2d_direct_forward(shape, x, weight, e, y);
}

void forward(const Conv2dShape& shape, Conv2dAlgo algo, const float* x, const float* weight, const Conv2dEpilogue& e,
             float* y) {
  if (e.residual && !e.mean && !is_depthwise(shape) && adds_residual(shape))
    return pointwise_forward(shape, x, weight, {e.bias, e.relu, nullptr, e.residual}, y);
  const Finish finish(shape, e, y);
  forward_by(shape, algo, x, weight, {e.bias, e.relu && !e.residual, finish.active() ? &finish : nullptr}, y);
  if (e.mean) finish.moments(e.mean, e.m2);
}

void backward_data(const Conv2dShape& shape, Conv2dAlgo algo, const float* dy, const float* weight, const float* bias,
                   float* dx) {
  if (is_depthwise(shape)) return depthwise_backward_data(shape, dy, weight, bias, dx);
  if (by_winograd(shape, algo)) return conv2d_winograd_backward_data(shape, dy, weight, bias, nullptr, dx);
  if (is_pointwise(shape)) return pointwise_backward_data(shape, dy, weight, bias, dx);
  if (algo == Conv2dAlgo::kAuto && conv2d_stride2_pays(shape))
    return conv2d_stride2_backward_data(shape, dy, weight, bias, dx);
  if (is_stem(shape)) return conv2d_stem_backward_data(shape, dy, weight, bias, dx);
  conv2d_direct_backward_data(shape, dy, weight, bias, dx);
}

bool backward_data_onto(const Conv2dShape& shape, Conv2dAlgo algo, const float* dy, const float* weight,
                        const float* before, float* dx) {
  if (is_depthwise(shape)) return false;
  if (by_winograd(shape, algo)) {
    conv2d_winograd_backward_data(shape, dy, weight, nullptr, before, dx);
    return true;
  }
  return is_pointwise(shape) && pointwise_backward_data_onto(shape, dy, weight, before, dx);
}

void backward_weight(const Conv2dShape& shape, Conv2dAlgo algo, const float* dy, const float* x, float* dweight) {
  if (is_depthwise(shape)) return depthwise_backward_weight(shape, dy, x, dweight);
  if (algo == Conv2dAlgo::kWinograd || (algo == Conv2dAlgo::kAuto && winograd_weight_pays(shape)))
    return winograd_backward_weight(shape, dy, x, dweight);
  if (is_pointwise(shape)) return pointwise_backward_weight(shape, dy, x, dweight);
  conv2d_backward_weight(shape, dy, x, dweight);
}

void sum_channels(int64_t rows, int64_t channels, const float* dy, float* sums) {
  if (rows == 0 || channels == 0) return;
  // The chunks depend on the size alone; their sums are short, and are added in order and in double.
  const int64_t chunk = rows > 256 * 64 ? (rows + 255) / 256 : 64;
  const int64_t chunks = (rows + chunk - 1) / chunk;
  float* parts = static_cast<float*>(scratch(kSlotSums, static_cast<size_t>(chunks * channels) * sizeof(float)));
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < chunks; ++i) {
    float* part = parts + i * channels;
    const int64_t end = (i + 1) * chunk < rows ? (i + 1) * chunk : rows;
    std::memcpy(part, dy + i * chunk * channels, static_cast<size_t>(channels) * sizeof(float));
    for (int64_t row = i * chunk + 1; row < end; ++row)
      for (int64_t j = 0; j < channels; ++j) part[j] += dy[row * channels + j];
  }
  for (int64_t j = 0; j < channels; ++j) {
    double total = 0.0;
    for (int64_t i = 0; i < chunks; ++i) total += static_cast<double>(parts[i * channels + j]);
    sums[j] += static_cast<float>(total);
  }
}

}  // namespace

extern const Conv2dOps conv2d;
const Conv2dOps conv2d = {forward, backward_data, backward_data_onto, backward_weight, sum_channels};

}  // namespace medmpi::MEDMPI_ISA
