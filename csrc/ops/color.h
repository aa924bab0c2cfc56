#pragma once
#include <cstdint>

namespace medmpi {

/// Colours of n pixels of three interleaved channels. uint8 channels count as value / 255. Hue, saturation and value
/// are A. R. Smith's hexcone (1978), all in [0, 1]; hue is circular.
struct ColorOps {
  void (*rgb_to_hsv_u8)(int64_t n, const uint8_t* x, float* y);
  void (*rgb_to_hsv_f32)(int64_t n, const float* x, float* y);
  void (*hsv_to_rgb)(int64_t n, const float* x, float* y);
  /// One channel of luma by ITU-R BT.601: 0.299 R + 0.587 G + 0.114 B.
  void (*rgb_to_gray_u8)(int64_t n, const uint8_t* x, uint8_t* y);
  void (*rgb_to_gray_f32)(int64_t n, const float* x, float* y);
};

}  // namespace medmpi
