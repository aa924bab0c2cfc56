#pragma once
// Which tile a product takes, and into how many parts its depth is cut: by an estimate of the time, in cycles of a
// device like the H200. Sizes alone decide, never the device at hand, so that results are the same everywhere.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <string_view>

namespace medmpi::cuda {

enum class TileChoice { kSmall, kMedium, kLarge };

struct TileSizes {
  const char* name;
  int64_t m, n, words;  // of 4 bytes: a stage's depth
  double efficiency;    // of multiply-adds, for what warps reread from shared memory
};
constexpr TileSizes kTiles[] = {{"small", 64, 64, 32, 0.6}, {"medium", 128, 64, 32, 0.8}, {"large", 128, 128, 16, 1.0}};

/// `count` products of rows x columns over a depth.
struct ProductSizes {
  int64_t rows, columns, depth, count;
  int64_t element_bytes;
  double rate;  // multiply-adds a cycle of one multiprocessor
};

struct Plan {
  TileChoice tile;
  int64_t tiles;  // of one product
  int splits;
  double cycles;
};

inline int64_t tiles_over(int64_t size, int64_t tile) { return (size + tile - 1) / tile; }

inline Plan plan_with(TileChoice choice, const ProductSizes& p) {
  constexpr int64_t kProcessors = 132, kPlaces = 2 * kProcessors;  // two blocks a multiprocessor
  constexpr double kBytes = 3000, kLaunch = 4000;                  // from the second-level cache a cycle; of a launch
  const TileSizes& tile = kTiles[static_cast<int>(choice)];
  const int64_t tiles = tiles_over(p.rows, tile.m) * tiles_over(p.columns, tile.n), blocks = tiles * p.count;
  const int64_t steps = std::max<int64_t>(1, tiles_over(p.depth, tile.words * 4 / p.element_bytes));
  const int64_t splits = std::max<int64_t>(1, std::min(kPlaces / std::max<int64_t>(1, blocks), steps / 4));
  const double work = static_cast<double>(tile.m * tile.n) * static_cast<double>(p.depth) / static_cast<double>(splits);
  const int64_t running = blocks * splits;
  // a lone block of a multiprocessor waits for memory more often
  const double alone = running <= kProcessors ? 0.7 : 0.5;
  const double compute = static_cast<double>(tiles_over(running, running <= kProcessors ? kProcessors : kPlaces)) *
                         work / (alone * tile.efficiency * p.rate);
  const double moved = static_cast<double>(blocks * (tile.m + tile.n) * p.element_bytes) * static_cast<double>(p.depth);
  const double parts = splits > 1 ? static_cast<double>(running * tile.m * tile.n * 8) / kBytes + kLaunch : 0.0;
  const double memory = moved / kBytes;
  return {choice, tiles, static_cast<int>(splits), std::max(compute, memory) + 0.2 * std::min(compute, memory) + parts};
}

/// The quickest plan; the tile that MEDMPI_CUDA_TILE (small, medium or large) asks for, to tune and to test.
inline Plan plan_product(const ProductSizes& p) {
  const char* asked = std::getenv("MEDMPI_CUDA_TILE");
  Plan best{};
  for (int i = 0; i < 3; ++i) {
    if (asked && std::string_view(asked) != kTiles[i].name) continue;
    const Plan plan = plan_with(static_cast<TileChoice>(i), p);
    if (best.splits == 0 || plan.cycles < best.cycles) best = plan;
  }
  if (best.splits == 0)
    throw std::invalid_argument("MEDMPI_CUDA_TILE is '" + std::string(asked) + "', expected small, medium or large");
  return best;
}

}  // namespace medmpi::cuda
