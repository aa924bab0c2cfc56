#pragma once
// What a convolution does to outputs that are complete but still in cache: adds the residual, clips, takes the moments
// that the batch normalisation behind it needs. Outputs are cut into bands of rows by their shape alone. Kernels write
// a band in pieces and in any order, on any thread; whoever writes its last value finishes it. So each band's sums are
// made by one thread, and merged in order.
//
// Scratch slots of the calling thread: 6 (values that each band waits for), 7 (moments of the bands).
#include "cpu/moments.h"
#include "cpu/sizes.h"
#include "ops/conv2d.h"
#include "ops/scratch.h"

namespace medmpi::MEDMPI_ISA {

class Finish {
 public:
  Finish(const Conv2dShape& g, const Conv2dEpilogue& e, float* y)
      : y_(y), residual_(e.residual), relu_(e.relu), width_(g.out_w()), height_(g.out_h()), k_(g.k) {
    constexpr int64_t kBandValues = 1 << 15, kBandRows = 4;  // Winograd's tiles have four rows
    const int64_t rows = kBandValues / (width_ * k_) / kBandRows * kBandRows;
    rows_ = smaller(larger(kBandRows, rows), height_);
    each_ = ceil_div(height_, rows_);
    bands_ = g.n * each_;
    if (!(e.residual || e.mean) || bands_ <= 0) return;
    left_ = static_cast<int64_t*>(scratch(6, static_cast<size_t>(bands_) * sizeof(int64_t)));
    for (int64_t i = 0; i < bands_; ++i) left_[i] = pixels(i) * k_;
    if (e.mean) moments_ = static_cast<double*>(scratch(7, static_cast<size_t>(bands_ * k_ * 2) * sizeof(double)));
  }

  /// `pixels` whole pixels from `first` on, counted over all images, have got `channels` more of their channels.
  void wrote_pixels(int64_t first, int64_t pixels, int64_t channels) const {
    const int64_t image = height_ * width_;
    while (pixels > 0) {
      const int64_t n = first / image, band = (first - n * image) / (rows_ * width_);
      const int64_t end = n * image + smaller((band + 1) * rows_ * width_, image);
      const int64_t here = smaller(pixels, end - first);
      wrote_values(n * each_ + band, here * channels);
      first += here;
      pixels -= here;
    }
  }
  /// The band of a row of an image, and that it has got `values` more.
  int64_t band(int64_t image, int64_t row) const { return image * each_ + row / rows_; }
  void wrote_values(int64_t band, int64_t values) const {
    if (values > 0 && __atomic_sub_fetch(left_ + band, values, __ATOMIC_ACQ_REL) == 0) finish(band);
  }

  /// The moments of all outputs, when all are written.
  void moments(double* mean, double* m2) const {
    for (int64_t j = 0; j < k_; ++j) mean[j] = m2[j] = 0.0;
    for (int64_t i = 0, before = 0; i < bands_; before += pixels(i), ++i)
      merge_moments(before, pixels(i), k_, moments_ + i * 2 * k_, mean, m2);
  }

  bool active() const { return left_ != nullptr; }

 private:
  int64_t pixels(int64_t band) const {
    const int64_t row = band % each_ * rows_;
    return smaller(rows_, height_ - row) * width_;
  }

  __attribute__((noinline)) void finish(int64_t band) const {
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

  float* y_;
  const float* residual_;
  bool relu_;
  int64_t width_, height_, k_, rows_ = 1, each_ = 1, bands_ = 0;
  int64_t* left_ = nullptr;
  double* moments_ = nullptr;
};

/// What a kernel does itself: the bias, the ReLU unless that comes later; and whom it tells what it has written, if
/// anybody.
struct Epilogue {
  const float* bias;
  bool relu;
  const Finish* finish;
};

}  // namespace medmpi::MEDMPI_ISA
