#pragma once
// What a convolution does to outputs that are complete but still in cache: adds the residual, clips, takes the moments
// that the batch normalisation behind it needs. Outputs are cut into bands of rows by their shape alone. Kernels write
// a band in pieces and in any order, on any thread; whoever writes its last value finishes it. So each band's sums are
// made by one thread, and merged in order.
#include "cpu/simd.h"
#include "cpu/sizes.h"
#include "ops/conv2d.h"

namespace medmpi::MEDMPI_ISA {

class Finish {
 public:
  Finish(const Conv2dShape& g, const Conv2dEpilogue& e, float* y);

  /// `pixels` whole pixels from `first` on, counted over all images, have got `channels` more of their channels.
  MEDMPI_INLINE void wrote_pixels(int64_t first, int64_t pixels, int64_t channels) const {
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
  MEDMPI_INLINE int64_t band(int64_t image, int64_t row) const { return image * each_ + row / rows_; }
  MEDMPI_INLINE void wrote_values(int64_t band, int64_t values) const {
    if (values > 0 && __atomic_sub_fetch(left_ + band, values, __ATOMIC_ACQ_REL) == 0) finish(band);
  }

  /// The moments of all outputs, when all are written.
  void moments(double* mean, double* m2) const;

  MEDMPI_INLINE bool active() const { return left_ != nullptr; }

 private:
  MEDMPI_INLINE int64_t pixels(int64_t band) const {
    const int64_t row = band % each_ * rows_;
    return smaller(rows_, height_ - row) * width_;
  }

  void finish(int64_t band) const;

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
  const float* residual = nullptr;  // only for a kernel that adds it itself
};

}  // namespace medmpi::MEDMPI_ISA
