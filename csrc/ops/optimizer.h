#pragma once
#include <cstdint>

namespace medmpi {

struct SgdStep {
  double lr, momentum, dampening, weight_decay;
  bool nesterov;
};

struct AdamStep {
  double lr, beta1, beta2, eps, weight_decay;
  bool decoupled;  // AdamW
  int64_t step;    // 1 for the first
};

/// Optimizer steps in place on `n` parameters, each one pass over memory, with the arithmetic of torch.optim.
struct OptimizerOps {
  /// `velocity` may be null where momentum is 0.
  void (*sgd)(int64_t n, const SgdStep& s, const float* grad, float* value, float* velocity);
  void (*adam)(int64_t n, const AdamStep& s, const float* grad, float* value, float* m, float* v);
};

}  // namespace medmpi
