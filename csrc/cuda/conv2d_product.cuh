#pragma once
// Forward and backward-data as one product: (lattice points) x (taps, source channels) x (result channels), with the
// choice of tile and of the number of parts that a long depth is cut into.
#include "cuda/conv2d_finish.cuh"

namespace medmpi::cuda {

constexpr int kLattices = 4;  // of one launch

struct Product {
  Source source;
  Filters filters;
  Finish finish;
  int groups, lattices, splits;
  float* parts;  // (blocks, splits) tiles where the depth is split
  Lattice lattice[kLattices];
};

/// blockIdx: x tile, columns first; y group; z lattice and split.
struct Task {
  int tile_m, tile_n, group, lattice, split;
  int64_t block;

  __device__ __forceinline__ Task(const Product& p, int tile_columns) {
    const int tiles_n = (p.finish.channels + tile_columns - 1) / tile_columns;
    tile_m = static_cast<int>(blockIdx.x) / tiles_n;
    tile_n = static_cast<int>(blockIdx.x) % tiles_n;
    group = static_cast<int>(blockIdx.y);
    lattice = static_cast<int>(blockIdx.z) % p.lattices;
    split = static_cast<int>(blockIdx.z) / p.lattices;
    block = (static_cast<int64_t>(lattice) * p.groups + group) * gridDim.x + blockIdx.x;
  }
};

template <class T, class Products, bool Forward, int VectorA, int VectorB>
__global__ void __launch_bounds__(T::kThreads, T::kBlocks) multiply_pixels(const __grid_constant__ Product p) {
  SHARED_BYTES(bytes);
  const Task task(p, T::kN);
  const Lattice& lattice = p.lattice[task.lattice];
  const int first_row = task.tile_m * T::kM, first_column = task.tile_n * T::kN;
  if (first_row >= lattice.rows) return;  // lattices differ by a row or column
  const int steps = (lattice.depth + T::kDepth - 1) / T::kDepth;
  const int first = static_cast<int>(static_cast<int64_t>(steps) * task.split / p.splits);
  const int last = static_cast<int>(static_cast<int64_t>(steps) * (task.split + 1) / p.splits);
  const int64_t source_channel = static_cast<int64_t>(task.group) * p.source.channels.divisor;
  Sums<T> sum;
  const PixelGather<T, VectorA> a(p.source, lattice, source_channel, first_row);
  if constexpr (Forward) {
    const auto* filters =
        static_cast<const typename T::Element*>(p.filters.data) + static_cast<int64_t>(task.group) * p.finish.channels;
    const MatrixRows<T, VectorB> b(filters, p.filters.stride, lattice.depth, first_column, p.finish.channels);
    multiply_tile<T, Products>(a, b, first, last, bytes, sum);
  } else {
    const FilterColumns<T, VectorB> b(p.filters, lattice, p.source.channels, source_channel, first_column);
    multiply_tile<T, Products>(a, b, first, last, bytes, sum);
  }
  if (p.splits > 1)
    store_part<T>(sum, p.parts, task.block * p.splits + task.split);
  else
    finish_tile<T>(p.finish, lattice, task.group, task.tile_m, task.tile_n, sum, reinterpret_cast<float*>(bytes));
}

/// Finishes the sums of the parts of a depth that was split.
template <class T>
__global__ void __launch_bounds__(T::kThreads) finish_pixels(const __grid_constant__ Product p) {
  SHARED_BYTES(bytes);
  const Task task(p, T::kN);
  const Lattice& lattice = p.lattice[task.lattice];
  if (task.tile_m * T::kM >= lattice.rows) return;
  Sums<T> sum;
  load_part<T>(sum, p.parts, task.block * p.splits);
  finish_tile<T>(p.finish, lattice, task.group, task.tile_m, task.tile_n, sum, reinterpret_cast<float*>(bytes));
}

/// Runs the product, with float32 operands; finish.by_fours, splits and parts are its own affair. `mean` and `m2`, or
/// null, receive the moments.
void conv2d_forward_product(const Product& p, double* mean, double* m2);
void conv2d_data_product(const Product& p);

}  // namespace medmpi::cuda
