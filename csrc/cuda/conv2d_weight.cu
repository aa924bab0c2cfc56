// The gradient of filters as a product: (taps, input channels) x (output pixels) x (output channels). The depth, the
// pixels, is cut into parts of fixed sizes that are added in order.
#include "cuda/conv2d_launch.cuh"
#include "cuda/conv2d_weight.cuh"

namespace medmpi::cuda {
namespace {

template <class T>
__device__ __forceinline__ void add_to_weight(const WeightProduct& p, int group, int tile_m, int tile_n, Sums<T>& sum) {
  const int first_row = tile_m * T::kM, first_column = tile_n * T::kN;
  const int rows = min(T::kM, p.lattice.depth - first_row), columns = min(T::kN, p.channels - first_column);
  float* first = p.dweight + first_row * p.pixel + static_cast<int64_t>(group) * p.channels + first_column;
  for_results<T>(sum, [&](int row, int column, const float4& four) {
    if (row >= rows) return;
    float* to = first + row * p.pixel + column;
    if (p.by_fours && column < columns) {
      const float4 old = *reinterpret_cast<const float4*>(to);
      *reinterpret_cast<float4*>(to) = make_float4(old.x + four.x, old.y + four.y, old.z + four.z, old.w + four.w);
      return;
    }
    if (column < columns) to[0] += four.x;
    if (column + 1 < columns) to[1] += four.y;
    if (column + 2 < columns) to[2] += four.z;
    if (column + 3 < columns) to[3] += four.w;
  });
}

/// blockIdx: x tile, columns first; y group; z split.
template <class T, class Products, int VectorA, int VectorB>
__global__ void __launch_bounds__(T::kThreads, T::kBlocks) multiply_weights(const __grid_constant__ WeightProduct p) {
  SHARED_BYTES(bytes);
  const int tiles_n = (p.channels + T::kN - 1) / T::kN;
  const int tile_m = static_cast<int>(blockIdx.x) / tiles_n, tile_n = static_cast<int>(blockIdx.x) % tiles_n;
  const int group = static_cast<int>(blockIdx.y), split = static_cast<int>(blockIdx.z);
  const int steps = (p.lattice.rows + T::kDepth - 1) / T::kDepth;
  const int first = static_cast<int>(static_cast<int64_t>(steps) * split / p.splits);
  const int last = static_cast<int>(static_cast<int64_t>(steps) * (split + 1) / p.splits);
  const int64_t source_channel = static_cast<int64_t>(group) * p.source.channels.divisor;
  const PixelRows<T, VectorA> a(p.source, p.lattice, source_channel, tile_m * T::kM);
  const auto* dy = static_cast<const typename T::Element*>(p.dy) + static_cast<int64_t>(group) * p.channels;
  const MatrixRows<T, VectorB> b(dy, p.pixel, p.lattice.rows, tile_n * T::kN, p.channels);
  Sums<T> sum;
  multiply_tile<T, Products>(a, b, first, last, bytes, sum);
  if (p.splits > 1)
    store_part<T>(sum, p.parts, (static_cast<int64_t>(group) * gridDim.x + blockIdx.x) * p.splits + split);
  else
    add_to_weight<T>(p, group, tile_m, tile_n, sum);
}

template <class T>
__global__ void __launch_bounds__(T::kThreads) finish_weights(const __grid_constant__ WeightProduct p) {
  const int tiles_n = (p.channels + T::kN - 1) / T::kN, group = static_cast<int>(blockIdx.y);
  Sums<T> sum;
  load_part<T>(sum, p.parts, (static_cast<int64_t>(group) * gridDim.x + blockIdx.x) * p.splits);
  add_to_weight<T>(p, group, static_cast<int>(blockIdx.x) / tiles_n, static_cast<int>(blockIdx.x) % tiles_n, sum);
}

}  // namespace

void conv2d_weight_product(WeightProduct p) {
  const int64_t channels = p.source.channels.divisor;
  const Access access = access_to(p.source.data, p.source.pixel, channels, p.dy, p.pixel, p.channels,
                                  p.lattice.depth / channels * tiles_over(p.channels, 256));
  p.by_fours = in_pieces(p.dweight, p.pixel, p.channels);
  const Plan plan = access.plan(p.lattice.depth, p.channels, p.lattice.rows, p.groups);
  if (access.narrow) {
    p.source.data = narrowed(kSlotNarrowA, static_cast<const float*>(p.source.data), p.source.count);
    p.dy = narrowed(kSlotNarrowB, static_cast<const float*>(p.dy), p.lattice.rows * p.pixel);
  }
  with_instance(plan.tile, access, [&](auto tile, auto products, auto vector_a, auto vector_b) {
    using T = decltype(tile);
    const int64_t blocks = plan.tiles * p.groups;
    p.splits = plan.splits;
    if (p.splits > 1) p.parts = device_scratch_floats(kSlotParts, blocks * p.splits * T::kM * T::kN);
    const dim3 grid(static_cast<unsigned>(plan.tiles), static_cast<unsigned>(p.groups),
                    static_cast<unsigned>(p.splits));
    launch(multiply_weights<T, decltype(products), vector_a.value, vector_b.value>, grid, T::kThreads, T::kSharedBytes,
           p);
    if (p.splits > 1) {
      add_parts(p.parts, blocks, p.splits, T::kM * T::kN);
      launch(finish_weights<T>, dim3(grid.x, grid.y), T::kThreads, 0, p);
    }
  });
}

}  // namespace medmpi::cuda
