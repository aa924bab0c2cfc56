#pragma once
#include <cstdint>

namespace medmpi {

/// Contrast-limited adaptive histogram equalisation of n images (h, w) with a grid of rows x columns tiles (K.
/// Zuiderveld, Graphics Gems IV, 1994), by OpenCV's rules: where a side is no multiple of its tiles, both are extended
/// by mirroring; a bin holds at most clip_limit times the tile's mean count, at least 1 (0: no limit).
struct ClaheShape {
  int64_t n, h, w, rows, columns;
  double clip_limit;
};

/// Size of a tile.
struct ClaheGrid {
  int64_t tile_h, tile_w;
  explicit constexpr ClaheGrid(const ClaheShape& s) : tile_h(0), tile_w(0) {
    const bool even = s.h % s.rows == 0 && s.w % s.columns == 0;
    tile_h = even ? s.h / s.rows : (s.h + s.rows - s.h % s.rows) / s.rows;
    tile_w = even ? s.w / s.columns : (s.w + s.columns - s.w % s.columns) / s.columns;
  }
};

/// x and y are separate.
struct ClaheOps {
  void (*u8)(const ClaheShape& s, const uint8_t* x, uint8_t* y);
  void (*u16)(const ClaheShape& s, const uint16_t* x, uint16_t* y);
};

}  // namespace medmpi
