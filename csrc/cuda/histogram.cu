// Histograms. Blocks count in shared memory where the bins fit there, and add whole numbers to the result, so that the
// order does not matter. Equal values of a warp are counted together: images have large even areas.
#include <cstring>
#include <limits>

#include "cuda/block.cuh"
#include "cuda/elements.cuh"
#include "ops/histogram.h"

namespace medmpi::cuda {
namespace {

using Count = unsigned long long;
static_assert(sizeof(Count) == sizeof(int64_t));

constexpr int64_t kSharedBins = 8192;
constexpr int64_t kPerBlock = int64_t{1} << 15;  // values of a block: counts of 32 bits hold more

template <typename T>
struct LevelBin {
  __device__ __forceinline__ int operator()(T v) const { return static_cast<int>(v); }
};

/// The bin of a value in [low, high], -1 for others: a guess, put right by the edges.
struct EdgeBin {
  const float* edges;
  float low, high, scale;
  int bins;
  __device__ __forceinline__ int operator()(float v) const {
    if (!(v >= low && v <= high)) return -1;
    const float at = (v - low) * scale, most = static_cast<float>(bins - 1);
    int bin = static_cast<int>(at < most ? at : most);
    if (bin > 0 && v < edges[bin]) --bin;
    if (bin < bins - 1 && v >= edges[bin + 1]) ++bin;
    return bin;
  }
};

/// Blocks with as many counts in shared memory as there are bins.
template <typename T, typename Bin>
__global__ void __launch_bounds__(kThreads)
    count_in_shared(int64_t n, int bins, const T* x, Bin bin_of, Count* counts) {
  SHARED_BYTES(bytes);
  auto* table = reinterpret_cast<unsigned*>(bytes);
  for (int b = static_cast<int>(threadIdx.x); b < bins; b += kThreads) table[b] = 0;
  __syncthreads();
  const int64_t begin = blockIdx.x * kPerBlock, end = begin + kPerBlock < n ? begin + kPerBlock : n;
  for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
    const int bin = bin_of(x[i]);
    if (bin >= 0) atomicAdd(&table[bin], 1u);
  }
  __syncthreads();
  for (int b = static_cast<int>(threadIdx.x); b < bins; b += kThreads)
    if (table[b]) atomicAdd(&counts[b], static_cast<Count>(table[b]));
}

/// Many bins: lanes that hit the same one add once.
template <typename T, typename Bin>
__global__ void __launch_bounds__(kThreads) count_in_memory(int64_t n, const T* x, Bin bin_of, Count* counts) {
  const int64_t rounds = (n + size_of_grid() - 1) / size_of_grid();
  for (int64_t r = 0; r < rounds; ++r) {
    const int64_t i = r * size_of_grid() + first_of_grid();
    const int bin = i < n ? bin_of(x[i]) : -1;
    const unsigned same = __match_any_sync(kWholeWarp, bin);
    if (bin >= 0 && __ffs(static_cast<int>(same)) - 1 == static_cast<int>(threadIdx.x % 32))
      atomicAdd(&counts[bin], static_cast<Count>(__popc(same)));
  }
}

template <typename T, typename Bin>
void count(int64_t n, int64_t bins, const T* x, const Bin& bin_of, int64_t* counts) {
  set_zero(counts, static_cast<size_t>(bins) * sizeof *counts);
  if (n <= 0) return;
  auto* to = reinterpret_cast<Count*>(counts);
  if (bins <= kSharedBins)
    launch(count_in_shared<T, Bin>, static_cast<unsigned>((n + kPerBlock - 1) / kPerBlock), kThreads,
           static_cast<size_t>(bins) * sizeof(unsigned), n, static_cast<int>(bins), x, bin_of, to);
  else
    launch(count_in_memory<T, Bin>, blocks_for(n, 8 * kThreads, 4096), kThreads, 0, n, x, bin_of, to);
}

void count_u8(int64_t n, const uint8_t* x, int64_t* counts) { count(n, 256, x, LevelBin<uint8_t>{}, counts); }
void count_u16(int64_t n, const uint16_t* x, int64_t* counts) { count(n, 65536, x, LevelBin<uint16_t>{}, counts); }

void count_f32(int64_t n, const float* x, int64_t bins, const float* edges, int64_t* counts) {
  const auto* table = static_cast<const float*>(device_upload(0, edges, static_cast<size_t>(bins + 1) * sizeof *edges));
  const float low = edges[0], high = edges[bins];
  count(n, bins, x, EdgeBin{table, low, high, static_cast<float>(bins) / (high - low), static_cast<int>(bins)}, counts);
}

// --- range ----------------------------------------------------------------------------------------------------------

/// Whole numbers in the order of the floats.
__device__ __forceinline__ int ordered(float v) {
  const int bits = __float_as_int(v);
  return bits ^ ((bits >> 31) & 0x7fffffff);
}
float from_ordered(int key) {
  const int bits = key ^ ((key >> 31) & 0x7fffffff);
  float v;
  std::memcpy(&v, &bits, sizeof v);
  return v;
}

struct Range {
  int least, most, nan;
};

__global__ void start_range(Range* range) { *range = {0x7fffffff, -0x7fffffff - 1, 0}; }

__global__ void __launch_bounds__(kThreads) find_range(int64_t n, const float* x, Range* range) {
  int least = 0x7fffffff, most = -0x7fffffff - 1, nan = 0;
  for (int64_t i = first_of_grid(); i < n; i += size_of_grid()) {
    const float v = x[i];
    const int key = ordered(v);
    nan |= v != v;
    least = key < least ? key : least;
    most = key > most ? key : most;
  }
  least = -1 - warp_max(-1 - least);
  most = warp_max(most);
  nan = warp_max(nan);
  if (threadIdx.x % 32) return;
  atomicMin(&range->least, least);
  atomicMax(&range->most, most);
  if (nan) atomicOr(&range->nan, 1);
}

void range_f32(int64_t n, const float* x, float* low, float* high) {
  auto* range = static_cast<Range*>(device_scratch(0, sizeof(Range)));
  launch(start_range, 1, 1, 0, range);
  launch(find_range, blocks_for(n, 8 * kThreads, 4096), kThreads, 0, n, x, range);
  Range found;
  copy_to_host(&found, range, sizeof found);
  *low = found.nan ? std::numeric_limits<float>::quiet_NaN() : from_ordered(found.least);
  *high = found.nan ? std::numeric_limits<float>::quiet_NaN() : from_ordered(found.most);
}

}  // namespace

extern const HistogramOps histogram;
const HistogramOps histogram = {count_u8, count_u16, count_f32, range_f32};

}  // namespace medmpi::cuda
