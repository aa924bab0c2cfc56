#pragma once
#include "cpu/depthwise_rows.h"

namespace medmpi::MEDMPI_ISA {

/// Output rows i and i + 1 of one image with stride 1 or 2, from weight (3, 3, c) or, `turned`, from it rotated by half
/// a turn; bias may be null. `far`: x and y come from memory.
void depthwise_tile_rows(const Walk& k, int64_t stride, int64_t i, bool far, const float* image, const float* weight,
                         bool turned, const float* bias, bool relu, float* y);
/// Output rows [i0, i1) of one image: sums[9][c] += the products of dy with x, both from memory.
void depthwise_tile_weight(const Walk& k, int64_t stride, int64_t i0, int64_t i1, const float* image, const float* dy,
                           float* sums);

}  // namespace medmpi::MEDMPI_ISA
