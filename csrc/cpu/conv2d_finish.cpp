// Bands of a convolution's outputs: how they are cut, and what is done to one that is complete. Sums of a band are made
// by one thread in a fixed order, and merged in order of the bands.
// Scratch slots of the calling thread: 6 (values that each band waits for), 7 (moments of the bands).
#include "cpu/conv2d_finish.h"

#include "cpu/moments.h"
#include "ops/scratch.h"

namespace medmpi::MEDMPI_ISA {
namespace {

constexpr int64_t kBandValues = 1 << 15;
constexpr int64_t kBandRows = 4;  // Winograd's tiles have four rows

}  // namespace

Finish::Finish(const Conv2dShape& g, const Conv2dEpilogue& e, float* y)
    : y_(y), residual_(e.residual), relu_(e.relu), width_(g.out_w()), height_(g.out_h()), k_(g.k) {
  if (g.n <= 0 || width_ <= 0 || height_ <= 0 || !(e.residual || e.mean)) return;
  rows_ = smaller(larger(kBandRows, kBandValues / (width_ * k_) / kBandRows * kBandRows), height_);
  each_ = ceil_div(height_, rows_);
  bands_ = g.n * each_;
  left_ = static_cast<int64_t*>(scratch(6, static_cast<size_t>(bands_) * sizeof(int64_t)));
  for (int64_t i = 0; i < bands_; ++i) left_[i] = pixels(i) * k_;
  if (e.mean) moments_ = static_cast<double*>(scratch(7, static_cast<size_t>(bands_ * k_ * 2) * sizeof(double)));
}

void Finish::moments(double* mean, double* m2) const {
  for (int64_t j = 0; j < k_; ++j) mean[j] = m2[j] = 0.0;
  for (int64_t i = 0, before = 0; i < bands_; before += pixels(i), ++i)
    merge_moments(before, pixels(i), k_, moments_ + i * 2 * k_, mean, m2);
}

void Finish::finish(int64_t band) const {
  const int64_t rows = pixels(band);
  const int64_t at = (band / each_ * height_ + band % each_ * rows_) * width_ * k_, count = rows * k_;
  float* const y = y_ + at;
  if (residual_) {
    const float* const add = residual_ + at;
    if (relu_)
#pragma GCC ivdep
      for (int64_t i = 0; i < count; ++i) {
        const float v = y[i] + add[i];
        y[i] = v < 0.0f ? 0.0f : v;
      }
    else
#pragma GCC ivdep
      for (int64_t i = 0; i < count; ++i) y[i] += add[i];
  }
  if (!moments_) return;
  const RowCut cut = cut_rows(rows, k_);
  double* const mine = moments_ + band * 2 * k_;
  for (int64_t c0 = 0; c0 < k_; c0 += kWideRow)
    chunk_statistics(cut, rows, smaller(kWideRow, k_ - c0), y + c0, mine + c0, mine + k_ + c0);
}

}  // namespace medmpi::MEDMPI_ISA
