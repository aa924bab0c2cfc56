// Colour spaces. A block of pixels at a time is split into its channels, computed, and put together again: the
// compiler makes vectors of all three loops.
#include "ops/color.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

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

/// Luma with weights of 15 bits that add up to 1, as in OpenCV.
MEDMPI_INLINE uint8_t luma(const uint8_t* x) {
  return static_cast<uint8_t>((x[0] * 9798 + x[1] * 19235 + x[2] * 3735 + 16384) >> 15);
}

void rgb_to_gray_u8(int64_t n, const uint8_t* x, uint8_t* y) {
  for_chunks(n, kChunk, [=](int64_t begin, int64_t end) {
    int64_t i = begin;
#if defined(__AVX2__)
    // Eight pixels at a time, four in each half of a vector: red and green, then blue, spread to 16 bits.
    const __m256i red_green = _mm256_setr_epi8(0, -1, 1, -1, 3, -1, 4, -1, 6, -1, 7, -1, 9, -1, 10, -1,  //
                                               0, -1, 1, -1, 3, -1, 4, -1, 6, -1, 7, -1, 9, -1, 10, -1);
    const __m256i blue = _mm256_setr_epi8(2, -1, -1, -1, 5, -1, -1, -1, 8, -1, -1, -1, 11, -1, -1, -1,  //
                                          2, -1, -1, -1, 5, -1, -1, -1, 8, -1, -1, -1, 11, -1, -1, -1);
    const __m256i weight_rg = _mm256_set1_epi32(9798 | 19235 << 16), weight_b = _mm256_set1_epi32(3735);
    const __m256i half = _mm256_set1_epi32(16384);
    const auto eight = [&](const uint8_t* p) __attribute__((always_inline)) {
      const __m256i v =
          _mm256_loadu2_m128i(reinterpret_cast<const __m128i*>(p + 12), reinterpret_cast<const __m128i*>(p));
      const __m256i sum = _mm256_add_epi32(_mm256_madd_epi16(_mm256_shuffle_epi8(v, red_green), weight_rg),
                                           _mm256_madd_epi16(_mm256_shuffle_epi8(v, blue), weight_b));
      return _mm256_srli_epi32(_mm256_add_epi32(sum, half), 15);
    };
    for (; i + 34 <= end; i += 32) {  // the last load reaches four bytes beyond its pixels
      const uint8_t* p = x + 3 * i;
      const __m256i low = _mm256_packus_epi32(eight(p), eight(p + 24)),
                    high = _mm256_packus_epi32(eight(p + 48), eight(p + 72));
      const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
      const __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packus_epi16(low, high), order);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(y + i), bytes);
    }
#endif
    for (; i < end; ++i) y[i] = luma(x + 3 * i);
  });
}
void rgb_to_gray_f32(int64_t n, const float* x, float* y) {
  for_chunks(n, kChunk, [=](int64_t begin, int64_t end) {
    Planes p{};
    for (int64_t i = begin; i < end; i += kBlock) {
      const int64_t count = end - i < kBlock ? end - i : kBlock;
      split(x + 3 * i, count, p);
      for (int64_t k = 0; k < count; ++k) y[i + k] = 0.299f * p.a[k] + 0.587f * p.b[k] + 0.114f * p.c[k];
    }
  });
}

}  // namespace

extern const ColorOps color;
const ColorOps color = {rgb_to_hsv<uint8_t>, rgb_to_hsv<float>, hsv_to_rgb, rgb_to_gray_u8, rgb_to_gray_f32};

}  // namespace medmpi::MEDMPI_ISA
