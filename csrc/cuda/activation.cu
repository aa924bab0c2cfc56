// ReLU forward and backward.
#include "cuda/elements.cuh"
#include "ops/activation.h"

namespace medmpi::cuda {
namespace {

/// max(x, 0); NaN stays NaN, as in torch.
struct Relu {
  __device__ void operator()(const float (&x)[1], float (&y)[1]) const { y[0] = x[0] < 0.0f ? 0.0f : x[0]; }
};
struct ReluBackward {
  __device__ void operator()(const float (&in)[2], float (&dx)[1]) const { dx[0] = in[1] > 0.0f ? in[0] : 0.0f; }
};

void relu(int64_t n, const float* x, float* y) { map<1, 1>(n, {{x}}, {{y}}, Relu{}); }
void relu_backward(int64_t n, const float* dy, const float* y, float* dx) {
  map<2, 1>(n, {{dy, y}}, {{dx}}, ReluBackward{});
}

}  // namespace

extern const ActivationOps activation;
const ActivationOps activation = {relu, relu_backward};

}  // namespace medmpi::cuda
