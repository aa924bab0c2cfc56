// Sums, scalings and checks: one pass over memory in chunks that fit the second-level cache.
#include "ops/elementwise.h"

#include "cpu/simd.h"
#include "cpu/threads.h"

namespace medmpi::MEDMPI_ISA {
namespace {

constexpr int64_t kChunk = 1 << 15;
constexpr int64_t kMaxChunks = 2048;

void add(int64_t n, const float* a, const float* b, bool relu, float* y) {
  for_chunks(n, kChunk, [=](int64_t begin, int64_t end) {
    if (relu) {
#pragma GCC ivdep
      for (int64_t i = begin; i < end; ++i) y[i] = a[i] + b[i] < 0.0f ? 0.0f : a[i] + b[i];
      return;
    }
#pragma GCC ivdep
    for (int64_t i = begin; i < end; ++i) y[i] = a[i] + b[i];
  });
}

void accumulate(int64_t n, float alpha, const float* x, float* y) {
  for_chunks(n, kChunk, [=](int64_t begin, int64_t end) {
#pragma GCC ivdep
    for (int64_t i = begin; i < end; ++i) y[i] += alpha * x[i];
  });
}

void scale(int64_t n, float factor, float* y) {
  for_chunks(n, kChunk, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) y[i] *= factor;
  });
}

void fill(int64_t n, float value, float* y) {
  for_chunks(n, kChunk, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) y[i] = value;
  });
}

double sum_squares(int64_t n, const float* x) {
  constexpr int64_t kWays = 32;
  double part[kMaxChunks] = {};
  const int64_t even = (n + kMaxChunks - 1) / kMaxChunks, chunk = even > kChunk ? even : kChunk;
  for_chunks(n, chunk, [&](int64_t begin, int64_t end) {
    double sums[kWays] = {};
    int64_t i = begin;
    for (; i + kWays <= end; i += kWays)
      for (int64_t j = 0; j < kWays; ++j) {
        const double value = static_cast<double>(x[i + j]);
        sums[j] += value * value;
      }
    for (int64_t j = 0; i < end; ++i, ++j) sums[j] += static_cast<double>(x[i]) * static_cast<double>(x[i]);
    double sum = 0.0;
    for (int64_t j = 0; j < kWays; ++j) sum += sums[j];
    part[begin / chunk] = sum;
  });
  double sum = 0.0;
  for (int64_t i = 0; i < kMaxChunks; ++i) sum += part[i];
  return sum;
}

bool all_finite(int64_t n, const float* x) {
  int broken = 0;
  for_chunks(n, kChunk, [x, &broken](int64_t begin, int64_t end) {
    int32_t found = 0;
    for (int64_t i = begin; i < end; ++i) {
      int32_t bits;
      std::memcpy(&bits, x + i, sizeof bits);
      found |= (bits & 0x7f800000) == 0x7f800000;
    }
    if (found) {
#pragma omp atomic write
      broken = 1;
    }
  });
  return !broken;
}

void normalize(int64_t m, int64_t c, const uint8_t* x, const float* scale_by, const float* shift, float* y) {
  constexpr int64_t kWide = 1024;  // several rows side by side, so that few channels fill the vectors
  const int64_t wide = kWide / c * c;
  for_chunks(m * c, kChunk / wide * wide, [=](int64_t begin, int64_t end) {
    alignas(64) float a[kWide], b[kWide];
    for (int64_t j = 0; j < wide; ++j) {
      a[j] = scale_by[j % c];
      b[j] = shift[j % c];
    }
    for (int64_t i = begin; i < end; i += wide) {
      const int64_t count = end - i < wide ? end - i : wide;
#pragma GCC ivdep
      for (int64_t j = 0; j < count; ++j) y[i + j] = static_cast<float>(x[i + j]) * a[j] + b[j];
    }
  });
}

}  // namespace

extern const ElementwiseOps elementwise;
const ElementwiseOps elementwise = {add, accumulate, scale, fill, sum_squares, all_finite, normalize};

}  // namespace medmpi::MEDMPI_ISA
