// Affine warps and grey-level changes of uint8 images, in integer arithmetic: the same bytes as on the CPU. A thread
// makes a pixel.
#include "cuda/elements.cuh"
#include "ops/warp.h"

namespace medmpi::cuda {
namespace {

constexpr int64_t kOne = 65536, kHalf = kOne / 2;

__device__ __forceinline__ uint8_t recoloured(int64_t value, const int64_t* gain_bias) {
  const int64_t v = (value * gain_bias[0] + gain_bias[1] + 2048) >> 12;
  return static_cast<uint8_t>(v < 0 ? 0 : v > 255 ? 255 : v);
}

__global__ void __launch_bounds__(kThreads)
    warp_pixels(WarpShape s, const uint8_t* x, const int64_t* matrix, const int64_t* colour, uint8_t* y) {
  const int64_t image = s.h * s.w, count = s.n * image;
  for (int64_t at = first_of_grid(); at < count; at += size_of_grid()) {
    const int64_t n = at / image, i = (at - n * image) / s.w, j = at - n * image - i * s.w;
    const int64_t* m = matrix + 6 * n;
    bool whole = true;  // whole pixels to whole pixels need no blend
    for (int k = 0; k < 6; ++k) whole = whole && (m[k] & (kOne - 1)) == 0;
    const int64_t column = m[0] * j + m[1] * i + m[2], row = m[3] * j + m[4] * i + m[5];
    const uint8_t* from = x + n * image * s.c;
    uint8_t* to = y + at * s.c;
    if (s.bilinear && !whole) {
      const int64_t left = column >> 16, top = row >> 16, u = (column >> 8) & 255, v = (row >> 8) & 255;
      const int64_t weights[4] = {(256 - u) * (256 - v), u * (256 - v), (256 - u) * v, u * v};
      for (int64_t k = 0; k < s.c; ++k) {
        int64_t sum = kHalf;
#pragma unroll
        for (int tap = 0; tap < 4; ++tap) {
          const int64_t p = top + tap / 2, q = left + tap % 2;
          if (p >= 0 && p < s.h && q >= 0 && q < s.w) sum += weights[tap] * from[(p * s.w + q) * s.c + k];
        }
        to[k] = static_cast<uint8_t>(sum >> 16);
      }
    } else {
      const int64_t p = (row + kHalf) >> 16, q = (column + kHalf) >> 16;
      const bool inside = p >= 0 && p < s.h && q >= 0 && q < s.w;
      for (int64_t k = 0; k < s.c; ++k) to[k] = inside ? from[(p * s.w + q) * s.c + k] : uint8_t{0};
    }
    if (colour)
      for (int64_t k = 0; k < s.c; ++k) to[k] = recoloured(to[k], colour + 2 * (n * s.c + k));
  }
}

void forward(const WarpShape& s, const uint8_t* x, const int64_t* matrix, const int64_t* colour, uint8_t* y) {
  const int64_t count = s.n * s.h * s.w;
  if (count <= 0 || s.c <= 0) return;
  const auto* steps =
      static_cast<const int64_t*>(device_upload(0, matrix, static_cast<size_t>(6 * s.n) * sizeof(int64_t)));
  const int64_t* levels = nullptr;
  if (colour)
    levels =
        static_cast<const int64_t*>(device_upload(1, colour, static_cast<size_t>(2 * s.n * s.c) * sizeof(int64_t)));
  launch(warp_pixels, blocks_for(count, kThreads), kThreads, 0, s, x, steps, levels, y);
}

}  // namespace

extern const WarpOps warp;
const WarpOps warp = {forward};

}  // namespace medmpi::cuda
