#pragma once
// What the losses share.
#include <cstdint>

#include "cuda/launch.cuh"

namespace medmpi::cuda {

/// What a loss is divided by.
struct Denominator {
  double value;
  const double* in_memory;  // instead, unless null
  __device__ __forceinline__ double get() const { return in_memory ? *in_memory : value; }
};

/// *loss = the sum of the partial losses by the denominator.
void finish_loss(int64_t count, const double* part, Denominator denominator, double* loss);

void softmax(int64_t m, int64_t k, const float* x, float* y);

bool dice(int64_t n, int64_t m, int64_t k, const float* x, const int64_t* labels, double smooth, int64_t first,
          double denominator, double* loss, float* dx);
bool dice_by(int64_t n, int64_t m, int64_t k, const float* x, const int64_t* labels, double smooth, int64_t first,
             const double* denominator, double* loss, float* dx);

}  // namespace medmpi::cuda
