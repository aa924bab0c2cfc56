// Colour spaces, a pixel to a thread.
#include "cuda/elements.cuh"
#include "ops/color.h"

namespace medmpi::cuda {
namespace {

struct Triple {
  float a, b, c;
};

template <typename T>
__device__ __forceinline__ Triple load_triple(const T* x, int64_t i) {
  constexpr float scale = sizeof(T) == 1 ? 1.0f / 255 : 1.0f;
  return {static_cast<float>(x[3 * i]) * scale, static_cast<float>(x[3 * i + 1]) * scale,
          static_cast<float>(x[3 * i + 2]) * scale};
}

struct ToHsv {
  __device__ Triple operator()(const Triple& p) const {
    const float r = p.a, g = p.b, b = p.c;
    const float low_gb = g < b ? g : b, high_gb = g < b ? b : g;
    const float low = r < low_gb ? r : low_gb, value = r < high_gb ? high_gb : r;
    const float range = value - low, inverse = 1.0f / (range > 0 ? range : 1.0f);
    // blue before green before red, where two are the highest
    const float sixth = b == value   ? 4.0f + (r - g) * inverse
                        : g == value ? 2.0f + (b - r) * inverse
                                     : (g - b) * inverse;
    float hue = sixth * (1.0f / 6);
    hue = hue < 0 ? hue + 1.0f : hue;
    return {range > 0 && hue < 1.0f ? hue : 0.0f, range > 0 ? range / value : 0.0f, value};
  }
};

/// A channel falls from `value` by the hue's distance from where the channel is at its highest.
__device__ __forceinline__ float channel(float sixths, float value, float chroma) {
  const float k = sixths >= 6.0f ? sixths - 6.0f : sixths, mirrored = 4.0f - k;
  const float least = k < mirrored ? k : mirrored;
  return value - chroma * (least < 0 ? 0.0f : least > 1.0f ? 1.0f : least);
}
struct ToRgb {
  __device__ Triple operator()(const Triple& p) const {
    const float sixths = (p.a - floorf(p.a)) * 6.0f, value = p.c, chroma = value * p.b;
    return {channel(sixths + 5.0f, value, chroma), channel(sixths + 3.0f, value, chroma),
            channel(sixths + 1.0f, value, chroma)};
  }
};

template <typename T, typename F>
__global__ void __launch_bounds__(kThreads) convert_pixels(int64_t n, const T* x, float* y, F f) {
  for (int64_t i = first_of_grid(); i < n; i += size_of_grid()) {
    const Triple v = f(load_triple(x, i));
    y[3 * i] = v.a;
    y[3 * i + 1] = v.b;
    y[3 * i + 2] = v.c;
  }
}

template <typename T, typename F>
void convert(int64_t n, const T* x, float* y) {
  if (n > 0) launch(convert_pixels<T, F>, blocks_for(n, kThreads), kThreads, 0, n, x, y, F{});
}

/// Luma with weights of 15 bits that add up to 1, as in OpenCV.
__global__ void __launch_bounds__(kThreads) luma_u8(int64_t n, const uint8_t* x, uint8_t* y) {
  for (int64_t i = first_of_grid(); i < n; i += size_of_grid())
    y[i] = static_cast<uint8_t>((x[3 * i] * 9798 + x[3 * i + 1] * 19235 + x[3 * i + 2] * 3735 + 16384) >> 15);
}
__global__ void __launch_bounds__(kThreads) luma_f32(int64_t n, const float* x, float* y) {
  for (int64_t i = first_of_grid(); i < n; i += size_of_grid())
    y[i] = 0.299f * x[3 * i] + 0.587f * x[3 * i + 1] + 0.114f * x[3 * i + 2];
}

void rgb_to_gray_u8(int64_t n, const uint8_t* x, uint8_t* y) {
  if (n > 0) launch(luma_u8, blocks_for(n, kThreads), kThreads, 0, n, x, y);
}
void rgb_to_gray_f32(int64_t n, const float* x, float* y) {
  if (n > 0) launch(luma_f32, blocks_for(n, kThreads), kThreads, 0, n, x, y);
}

}  // namespace

extern const ColorOps color;
const ColorOps color = {convert<uint8_t, ToHsv>, convert<float, ToHsv>, convert<float, ToRgb>, rgb_to_gray_u8,
                        rgb_to_gray_f32};

}  // namespace medmpi::cuda
