#pragma once
// Starts products: which tile, how many parts, which instance of the kernels.
#include <algorithm>

#include "cuda/channel_sums.cuh"
#include "cuda/conv2d_plan.h"
#include "cuda/conv2d_product.cuh"
#include "cuda/narrow.cuh"
#include "cuda/parts.cuh"
#include "ops/precision.h"

namespace medmpi::cuda {

// The tiles, in the sizes of kTiles. Small is for few results, Medium for few channels, and Large meets each operand
// least often.
template <class Element>
using LargeTile = Tile<Element, 128, 128, 16, 64, 64, 4, 2>;
template <class Element>
using MediumTile = Tile<Element, 128, 64, 32, 64, 32, 3, 2>;
template <class Element>
using SmallTile = Tile<Element, 64, 64, 32, 32, 32, 3, 2>;

template <class T>
constexpr bool agrees(TileChoice choice) {
  const TileSizes& t = kTiles[static_cast<int>(choice)];
  return T::kM == t.m && T::kN == t.n && T::kDepth * static_cast<int>(sizeof(typename T::Element)) == t.words * 4;
}
static_assert(agrees<SmallTile<float>>(TileChoice::kSmall) && agrees<MediumTile<float>>(TileChoice::kMedium) &&
                  agrees<LargeTile<float>>(TileChoice::kLarge) && agrees<LargeTile<Bf16>>(TileChoice::kLarge),
              "plans are for these tiles");

constexpr int kSlotParts = 0, kSlotMoments = 1, kSlotNarrowA = 3, kSlotNarrowB = 4;  // scratch

/// How operands come: bf16 copies, or float32 in pieces of four or value by value.
struct Access {
  bool narrow, fours_a, fours_b;

  /// Plans a product with such operands.
  Plan plan(int64_t rows, int64_t columns, int64_t depth, int64_t count) const {
    const double rate = precision() == Precision::fp32 ? 210 : precision() == Precision::tf32 ? 640 : 1280;
    const ProductSizes sizes{rows, columns, depth, count, narrow ? 2 : 4, rate};
    return fours_a && fours_b ? plan_product(sizes) : plan_with(TileChoice::kSmall, sizes);
  }
};

/// For operands with `pixel_a` and `pixel_b` channels, `group_a` and `group_b` of a group. Copies in bf16 are made
/// where `reread`, the times that elements are read, is large enough to pay for them.
inline Access access_to(const void* a, int64_t pixel_a, int64_t group_a, const void* b, int64_t pixel_b,
                        int64_t group_b, int64_t reread) {
  const bool narrow = precision() == Precision::bf16 && reread > 1 && in_pieces(a, pixel_a, group_a, 8) &&
                      in_pieces(b, pixel_b, group_b, 8);
  return {narrow, in_pieces(a, pixel_a, group_a), in_pieces(b, pixel_b, group_b)};
}

/// Calls run(tile, products, vector_a, vector_b), the first two by an object of the type, the others by
/// std::integral_constant: single values are for small tiles.
template <class Run>
void with_instance(TileChoice choice, const Access& access, Run run) {
  using One = std::integral_constant<int, 1>;
  using Four = std::integral_constant<int, 4>;
  using Eight = std::integral_constant<int, 8>;
  const auto with_tile = [&](auto products, auto vector) {
    using Element = typename decltype(products)::Element;
    if (choice == TileChoice::kLarge) return run(LargeTile<Element>{}, products, vector, vector);
    if (choice == TileChoice::kMedium) return run(MediumTile<Element>{}, products, vector, vector);
    return run(SmallTile<Element>{}, products, vector, vector);
  };
  const auto with_float = [&](auto products) {
    if (access.fours_a && access.fours_b) return with_tile(products, Four{});
    if (access.fours_a) return run(SmallTile<float>{}, products, Four{}, One{});
    if (access.fours_b) return run(SmallTile<float>{}, products, One{}, Four{});
    return run(SmallTile<float>{}, products, One{}, One{});
  };
  if (access.narrow) return with_tile(Bf16Products{}, Eight{});
  switch (precision()) {
    case Precision::fp32:
      return with_float(Float32Products{});
    case Precision::tf32:
      return with_float(Tf32Products{});
    case Precision::bf16:
      return with_float(RoundedProducts{});
  }
}

template <bool Forward>
void run_product(Product p, double* mean, double* m2) {
  int64_t rows = 0, depth = 0;
  for (int i = 0; i < p.lattices; ++i) {
    rows = std::max<int64_t>(rows, p.lattice[i].rows);
    depth = std::max<int64_t>(depth, p.lattice[i].depth);
  }
  if (rows == 0) return;
  const int64_t columns = p.finish.channels;
  const int64_t channels = p.source.channels.divisor;
  const Access access = access_to(p.source.data, p.source.pixel, channels, p.filters.data, p.filters.stride,
                                  Forward ? columns : channels, depth / channels * tiles_over(columns, 256));
  p.finish.by_fours = in_pieces(p.finish.y, p.finish.pixel, columns) &&
                      in_pieces(p.finish.bias, p.finish.pixel, columns) &&
                      in_pieces(p.finish.residual, p.finish.pixel, columns);
  const Plan plan = access.plan(rows, columns, depth, int64_t{p.groups} * p.lattices);
  if (access.narrow) {
    p.source.data = narrowed(kSlotNarrowA, static_cast<const float*>(p.source.data), p.source.count);
    p.filters.data = narrowed(kSlotNarrowB, static_cast<const float*>(p.filters.data), p.filters.count);
  }
  with_instance(plan.tile, access, [&](auto tile, auto products, auto vector_a, auto vector_b) {
    using T = decltype(tile);
    const int64_t tiles_m = tiles_over(rows, T::kM), blocks = plan.tiles * p.groups * p.lattices;
    p.splits = plan.splits;
    if (p.splits > 1) p.parts = device_scratch_floats(kSlotParts, blocks * p.splits * T::kM * T::kN);
    if (mean) {
      const size_t moments = static_cast<size_t>(tiles_m * p.finish.pixel);
      p.finish.means = static_cast<double*>(device_scratch(kSlotMoments, 2 * moments * sizeof(double)));
      p.finish.squares = p.finish.means + moments;
    }
    const dim3 grid(static_cast<unsigned>(plan.tiles), static_cast<unsigned>(p.groups),
                    static_cast<unsigned>(p.lattices * p.splits));
    launch(multiply_pixels<T, decltype(products), Forward, vector_a.value, vector_b.value>, grid, T::kThreads,
           T::kSharedBytes, p);
    if (p.splits > 1) {
      add_parts(p.parts, blocks, p.splits, T::kM * T::kN);
      launch(finish_pixels<T>, dim3(grid.x, grid.y, static_cast<unsigned>(p.lattices)), T::kThreads, T::kMomentBytes,
             p);
    }
    if (mean) merge_tile_moments(rows, T::kM, p.finish.pixel, p.finish.means, p.finish.squares, mean, m2);
  });
}

}  // namespace medmpi::cuda
