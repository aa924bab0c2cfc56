// Optimizer steps: one pass that reads each array once and writes what changes, bound by memory.
#include "ops/optimizer.h"

#include "cpu/simd.h"
#include "cpu/threads.h"

namespace medmpi::MEDMPI_ISA {
namespace {

constexpr int64_t kChunk = 1 << 14;

template <bool kMomentum, bool kNesterov>
void sgd_as(int64_t n, const SgdStep& s, const float* grad, float* value, float* velocity) {
  const float lr = static_cast<float>(s.lr), decay = static_cast<float>(s.weight_decay);
  const float momentum = static_cast<float>(s.momentum), fresh = static_cast<float>(1.0 - s.dampening);
  for_chunks(n, kChunk, [=](int64_t begin, int64_t end) {
#pragma GCC ivdep
    for (int64_t i = begin; i < end; ++i) {
      float g = grad[i] + decay * value[i];
      if constexpr (kMomentum) {
        const float moving = momentum * velocity[i] + fresh * g;
        velocity[i] = moving;
        g = kNesterov ? g + momentum * moving : moving;
      }
      value[i] -= lr * g;
    }
  });
}

void sgd(int64_t n, const SgdStep& s, const float* grad, float* value, float* velocity) {
  const auto run = !velocity ? sgd_as<false, false> : s.nesterov ? sgd_as<true, true> : sgd_as<true, false>;
  run(n, s, grad, value, velocity);
}

/// base^n by squaring: <cmath>'s templates have no place in code built for one instruction set.
double power(double base, int64_t n) {
  double result = 1.0;
  for (; n > 0; n >>= 1, base *= base)
    if (n & 1) result *= base;
  return result;
}

void adam(int64_t n, const AdamStep& s, const float* grad, float* value, float* m, float* v) {
  const double correction = __builtin_sqrt(1.0 - power(s.beta2, s.step));
  const float size = static_cast<float>(s.lr / (1.0 - power(s.beta1, s.step)));
  const float keep = s.decoupled ? static_cast<float>(1.0 - s.lr * s.weight_decay) : 1.0f;
  const float decay = s.decoupled ? 0.0f : static_cast<float>(s.weight_decay);
  const float move = static_cast<float>(1.0 - s.beta1), eps = static_cast<float>(s.eps);
  const float beta2 = static_cast<float>(s.beta2), fresh = static_cast<float>(1.0 - s.beta2);
  const float root = static_cast<float>(correction);
  for_chunks(n, kChunk, [=](int64_t begin, int64_t end) {
#pragma GCC ivdep
    for (int64_t i = begin; i < end; ++i) {
      const float g = grad[i] + decay * value[i];
      const float mean = m[i] + move * (g - m[i]), square = beta2 * v[i] + fresh * g * g;
      m[i] = mean;
      v[i] = square;
      value[i] = value[i] * keep - size * (mean / (__builtin_sqrtf(square) / root + eps));
    }
  });
}

}  // namespace

extern const OptimizerOps optimizer;
const OptimizerOps optimizer = {sgd, adam};

}  // namespace medmpi::MEDMPI_ISA
