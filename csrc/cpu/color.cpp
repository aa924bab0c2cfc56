// Colour spaces. A block of pixels at a time is split into its channels, computed, and put together again: the
// compiler makes vectors of all three loops.
#include "ops/color.h"

#include <cmath>

#include "cpu/simd.h"
#include "cpu/threads.h"

namespace medmpi::MEDMPI_ISA {
namespace {

constexpr int64_t kBlock = 512, kChunk = 64 * kBlock;

struct Planes {
  float a[kBlock], b[kBlock], c[kBlock];
};

template <typename T>
inline void split(const T* x, int64_t count, Planes& p) {
  constexpr float scale = sizeof(T) == 1 ? 1.0f / 255 : 1.0f;
  for (int64_t i = 0; i < count; ++i) {
    p.a[i] = static_cast<float>(x[3 * i]) * scale;
    p.b[i] = static_cast<float>(x[3 * i + 1]) * scale;
    p.c[i] = static_cast<float>(x[3 * i + 2]) * scale;
  }
}
inline void join(const Planes& p, int64_t count, float* y) {
  for (int64_t i = 0; i < count; ++i) {
    y[3 * i] = p.a[i];
    y[3 * i + 1] = p.b[i];
    y[3 * i + 2] = p.c[i];
  }
}

inline void to_hsv(Planes& p) {
  for (int64_t i = 0; i < kBlock; ++i) {
    const float r = p.a[i], g = p.b[i], b = p.c[i];
    const float low_gb = g < b ? g : b, high_gb = g < b ? b : g;
    const float low = r < low_gb ? r : low_gb, value = r < high_gb ? high_gb : r;
    const float range = value - low, inverse = 1.0f / (range > 0 ? range : 1.0f);
    // blue before green before red, where two are the highest
    const float sixth = b == value   ? 4.0f + (r - g) * inverse
                        : g == value ? 2.0f + (b - r) * inverse
                                     : (g - b) * inverse;
    float hue = sixth * (1.0f / 6);
    hue = hue < 0 ? hue + 1.0f : hue;
    p.a[i] = range > 0 && hue < 1.0f ? hue : 0.0f;
    p.b[i] = range > 0 ? range / value : 0.0f;
    p.c[i] = value;
  }
}

/// A channel falls from `value` by the hue's distance from where the channel is at its highest.
MEDMPI_INLINE float channel(float sixths, float value, float chroma) {
  const float k = sixths >= 6.0f ? sixths - 6.0f : sixths, mirrored = 4.0f - k;
  const float least = k < mirrored ? k : mirrored;
  return value - chroma * (least < 0 ? 0.0f : least > 1.0f ? 1.0f : least);
}
inline void to_rgb(Planes& p) {
  for (int64_t i = 0; i < kBlock; ++i) {
    const float sixths = (p.a[i] - std::floor(p.a[i])) * 6.0f, value = p.c[i], chroma = value * p.b[i];
    p.a[i] = channel(sixths + 5.0f, value, chroma);
    p.b[i] = channel(sixths + 3.0f, value, chroma);
    p.c[i] = channel(sixths + 1.0f, value, chroma);
  }
}

template <typename T, typename Convert>
inline void by_blocks(int64_t n, const T* x, float* y, const Convert& convert) {
  for_chunks(n, kChunk, [=](int64_t begin, int64_t end) {
    Planes p{};
    for (int64_t i = begin; i < end; i += kBlock) {
      const int64_t count = end - i < kBlock ? end - i : kBlock;
      split(x + 3 * i, count, p);
      convert(p);
      join(p, count, y + 3 * i);
    }
  });
}

template <typename T>
void rgb_to_hsv(int64_t n, const T* x, float* y) {
  by_blocks(n, x, y, to_hsv);
}
void hsv_to_rgb(int64_t n, const float* x, float* y) { by_blocks(n, x, y, to_rgb); }

void rgb_to_gray_u8(int64_t n, const uint8_t* x, uint8_t* y) {
  for_chunks(n, kChunk, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)  // weights of 15 bits that add up to 1, as in OpenCV
      y[i] = static_cast<uint8_t>((x[3 * i] * 9798 + x[3 * i + 1] * 19235 + x[3 * i + 2] * 3735 + 16384) >> 15);
  });
}
void rgb_to_gray_f32(int64_t n, const float* x, float* y) {
  for_chunks(n, kChunk, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) y[i] = 0.299f * x[3 * i] + 0.587f * x[3 * i + 1] + 0.114f * x[3 * i + 2];
  });
}

}  // namespace

extern const ColorOps color;
const ColorOps color = {rgb_to_hsv<uint8_t>, rgb_to_hsv<float>, hsv_to_rgb, rgb_to_gray_u8, rgb_to_gray_f32};

}  // namespace medmpi::MEDMPI_ISA
