// Optimizer steps: one pass that reads each array once and writes what changes.
#include <cmath>

#include "cuda/elements.cuh"
#include "ops/optimizer.h"

namespace medmpi::cuda {
namespace {

struct PlainSgd {
  float lr, decay;
  __device__ void operator()(const float (&in)[2], float (&value)[1]) const {
    value[0] = in[1] - lr * (in[0] + decay * in[1]);
  }
};

struct MomentumSgd {
  float lr, decay, momentum, fresh;
  bool nesterov;
  __device__ void operator()(const float (&in)[3], float (&out)[2]) const {
    const float g = in[0] + decay * in[1];
    const float moving = momentum * in[2] + fresh * g;
    out[0] = in[1] - lr * (nesterov ? g + momentum * moving : moving);
    out[1] = moving;
  }
};

void sgd(int64_t n, const SgdStep& s, const float* grad, float* value, float* velocity) {
  const float lr = static_cast<float>(s.lr), decay = static_cast<float>(s.weight_decay);
  const float momentum = static_cast<float>(s.momentum), fresh = static_cast<float>(1.0 - s.dampening);
  if (velocity)
    map<3, 2>(n, {{grad, value, velocity}}, {{value, velocity}}, MomentumSgd{lr, decay, momentum, fresh, s.nesterov});
  else
    map<2, 1>(n, {{grad, value}}, {{value}}, PlainSgd{lr, decay});
}

struct Adam {
  float size, keep, decay, move, eps, beta2, fresh, root;
  __device__ void operator()(const float (&in)[4], float (&out)[3]) const {
    const float g = in[0] + decay * in[1];
    const float mean = in[2] + move * (g - in[2]), square = beta2 * in[3] + fresh * g * g;
    out[0] = in[1] * keep - size * (mean / (sqrtf(square) / root + eps));
    out[1] = mean;
    out[2] = square;
  }
};

void adam(int64_t n, const AdamStep& s, const float* grad, float* value, float* m, float* v) {
  const auto step = static_cast<double>(s.step);
  Adam f;
  f.size = static_cast<float>(s.lr / (1.0 - std::pow(s.beta1, step)));
  f.keep = s.decoupled ? static_cast<float>(1.0 - s.lr * s.weight_decay) : 1.0f;
  f.decay = s.decoupled ? 0.0f : static_cast<float>(s.weight_decay);
  f.move = static_cast<float>(1.0 - s.beta1);
  f.eps = static_cast<float>(s.eps);
  f.beta2 = static_cast<float>(s.beta2);
  f.fresh = static_cast<float>(1.0 - s.beta2);
  f.root = static_cast<float>(std::sqrt(1.0 - std::pow(s.beta2, step)));
  map<4, 3>(n, {{grad, value, m, v}}, {{value, m, v}}, f);
}

}  // namespace

extern const OptimizerOps optimizer;
const OptimizerOps optimizer = {sgd, adam};

}  // namespace medmpi::cuda
