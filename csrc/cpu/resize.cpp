// Nearest and bilinear resizing, vectorised over channels. An output row reads two input rows; backward adds an output
// row into two input rows, one image to a thread, so that the order of sums never changes.
#include "ops/resize.h"

#include "cpu/simd.h"
#include "cpu/threads.h"

namespace medmpi::MEDMPI_ISA {
namespace {

/// Where an output coordinate falls between two input coordinates: (1 - weight) of low and weight of high.
struct Source {
  int64_t low, high;
  float weight;
};

MEDMPI_INLINE Source source(const ResizeShape& s, int64_t out, int64_t in_size, int64_t out_size) {
  if (s.interpolation == Interpolation::nearest) {
    const auto ratio = static_cast<float>(in_size) / static_cast<float>(out_size);
    const auto at = static_cast<int64_t>(static_cast<float>(out) * ratio);
    const int64_t low = at < in_size ? at : in_size - 1;
    return {low, low, 0.0f};
  }
  float at;
  if (s.align_corners) {
    at = out_size > 1 ? static_cast<float>(out) * (static_cast<float>(in_size - 1) / static_cast<float>(out_size - 1))
                      : 0.0f;
  } else {
    at = (static_cast<float>(out) + 0.5f) * (static_cast<float>(in_size) / static_cast<float>(out_size)) - 0.5f;
    at = at < 0.0f ? 0.0f : at;
  }
  auto low = static_cast<int64_t>(at);
  low = low < in_size ? low : in_size - 1;
  return {low, low + 1 < in_size ? low + 1 : low, at - static_cast<float>(low)};
}

void forward(const ResizeShape& s, const float* x, float* y) {
  const int64_t c = s.c;
  for_chunks(s.n * s.out_h, 8, [=, &s](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const Source v = source(s, row % s.out_h, s.h, s.out_h);
      const float* top = x + (row / s.out_h * s.h + v.low) * s.w * c;
      const float* bottom = x + (row / s.out_h * s.h + v.high) * s.w * c;
      float* out = y + row * s.out_w * c;
      for (int64_t j = 0; j < s.out_w; ++j, out += c) {
        const Source u = source(s, j, s.w, s.out_w);
        const float *a = top + u.low * c, *b = top + u.high * c, *d = bottom + u.low * c, *e = bottom + u.high * c;
        const float w = u.weight, z = v.weight;
        for (int64_t k = 0; k < c; ++k)
          out[k] = (1 - z) * ((1 - w) * a[k] + w * b[k]) + z * ((1 - w) * d[k] + w * e[k]);
      }
    }
  });
}

void backward(const ResizeShape& s, const float* dy, float* dx) {
  const int64_t c = s.c, image = s.h * s.w * c;
  for_chunks(s.n, 1, [=, &s](int64_t begin, int64_t end) {
    std::memset(dx + begin * image, 0, static_cast<size_t>((end - begin) * image) * sizeof(float));
    for (int64_t row = begin * s.out_h; row < end * s.out_h; ++row) {
      const Source v = source(s, row % s.out_h, s.h, s.out_h);
      float* top = dx + (row / s.out_h * s.h + v.low) * s.w * c;
      float* bottom = dx + (row / s.out_h * s.h + v.high) * s.w * c;
      const float* in = dy + row * s.out_w * c;
      for (int64_t j = 0; j < s.out_w; ++j, in += c) {
        const Source u = source(s, j, s.w, s.out_w);
        const float w = u.weight, z = v.weight;
        for (int64_t k = 0; k < c; ++k) top[u.low * c + k] += (1 - z) * (1 - w) * in[k];
        for (int64_t k = 0; k < c; ++k) top[u.high * c + k] += (1 - z) * w * in[k];
        for (int64_t k = 0; k < c; ++k) bottom[u.low * c + k] += z * (1 - w) * in[k];
        for (int64_t k = 0; k < c; ++k) bottom[u.high * c + k] += z * w * in[k];
      }
    }
  });
}

}  // namespace

extern const ResizeOps resize;
const ResizeOps resize = {forward, backward};

}  // namespace medmpi::MEDMPI_ISA
