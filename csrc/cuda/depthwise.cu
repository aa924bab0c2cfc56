// Depthwise convolution, bound by memory: a thread computes a patch of neighbouring outputs of four channels, so that
// it meets each input a few times in registers, and the threads around it find their margins in the first-level cache.
#include "cuda/channel_sums.cuh"
#include "cuda/grouped.cuh"

namespace medmpi::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kSlotParts = 0;  // scratch

/// Sizes of a pass over images: a forward pass, or with flipped filters the gradient for its input.
struct Patches {
  int h, w, c, pad_top, pad_left, out_h, out_w;
  int quads;                                   // channels / 4
  FastDivision by_quads, by_columns, by_rows;  // quads, and patches of a row and of a column of an image
  int64_t count;                               // threads
};

__device__ __forceinline__ float4 load4(const float* from) { return *reinterpret_cast<const float4*>(from); }

__device__ __forceinline__ void add_product(float4& sum, const float4& a, const float4& b) {
  sum.x += a.x * b.x;
  sum.y += a.y * b.y;
  sum.z += a.z * b.z;
  sum.w += a.w * b.w;
}

__device__ __forceinline__ void add(float4& sum, const float4& more) {
  sum.x += more.x;
  sum.y += more.y;
  sum.z += more.z;
  sum.w += more.w;
}

template <int R, int S, int Stride, int Rows, int Columns, bool Flip>
__global__ void __launch_bounds__(kThreads)
    patch_kernel(const __grid_constant__ Patches p, const float* x, const float* weight, const float* bias,
                 const float* residual, bool relu, float* y) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (thread >= p.count) return;
  int quad, column, row;
  const int patch = p.by_quads.quotient(static_cast<int>(thread), quad);
  const int image = p.by_rows.quotient(p.by_columns.quotient(patch, column), row);
  const int c = quad * 4, first_a = row * Rows, first_b = column * Columns;
  const int first_h = first_a * Stride - p.pad_top, first_w = first_b * Stride - p.pad_left;
  float4 filter[R * S], sum[Rows][Columns];
#pragma unroll
  for (int tap = 0; tap < R * S; ++tap)
    filter[tap] = load4(weight + static_cast<int64_t>(Flip ? R * S - 1 - tap : tap) * p.c + c);
#pragma unroll
  for (int a = 0; a < Rows; ++a)
#pragma unroll
    for (int b = 0; b < Columns; ++b) sum[a][b] = bias ? load4(bias + c) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  const float* from = x + (static_cast<int64_t>(image) * p.h * p.w) * p.c + c;
#pragma unroll
  for (int i = 0; i < (Rows - 1) * Stride + R; ++i) {
    const int h = first_h + i;
    const bool in_height = h >= 0 && h < p.h;
#pragma unroll
    for (int j = 0; j < (Columns - 1) * Stride + S; ++j) {
      const int w = first_w + j;
      const bool inside = in_height && w >= 0 && w < p.w;
      const float4 value =
          inside ? load4(from + (static_cast<int64_t>(h) * p.w + w) * p.c) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
      for (int a = 0; a < Rows; ++a)
#pragma unroll
        for (int b = 0; b < Columns; ++b) {
          const int r = i - a * Stride, s = j - b * Stride;
          if (r >= 0 && r < R && s >= 0 && s < S) add_product(sum[a][b], value, filter[r * S + s]);
        }
    }
  }
#pragma unroll
  for (int a = 0; a < Rows; ++a)
#pragma unroll
    for (int b = 0; b < Columns; ++b) {
      if (first_a + a >= p.out_h || first_b + b >= p.out_w) continue;
      const int64_t at = ((static_cast<int64_t>(image) * p.out_h + first_a + a) * p.out_w + first_b + b) * p.c + c;
      float4 out = sum[a][b];
      if (residual) add(out, load4(residual + at));
      if (relu)
        out = make_float4(out.x < 0.0f ? 0.0f : out.x, out.y < 0.0f ? 0.0f : out.y, out.z < 0.0f ? 0.0f : out.z,
                          out.w < 0.0f ? 0.0f : out.w);
      *reinterpret_cast<float4*>(y + at) = out;
    }
}

template <int R, int Stride, bool Flip>
bool run_patches(int64_t n, Patches p, const float* x, const float* weight, const float* bias, const float* residual,
                 bool relu, float* y) {
  constexpr int kRows = R == 3 && Stride == 1 ? 4 : 2, kColumns = 2;
  const int64_t columns = (p.out_w + kColumns - 1) / kColumns, rows = (p.out_h + kRows - 1) / kRows;
  p.quads = p.c / 4;
  p.count = n * rows * columns * p.quads;
  if (p.count >= int64_t{1} << 31) return false;
  if (p.count == 0) return true;
  p.by_quads = FastDivision(p.quads);
  p.by_columns = FastDivision(columns);
  p.by_rows = FastDivision(rows);
  launch(patch_kernel<R, R, Stride, kRows, kColumns, Flip>, blocks_for(p.count, kThreads, int64_t{1} << 31), kThreads,
         0, p, x, weight, bias, residual, relu, y);
  return true;
}

// The gradient for the filters: a thread goes over strips of kStrip outputs of four channels and keeps the sums of all
// taps; a warp has 8 quads of channels and 4 strips, a block 8 warps.
constexpr int kStrip = 4, kQuads = 8, kStrips = 32;

struct Strips {
  int h, w, c, pad_top, pad_left, out_h, out_w;
  int strips, per_block;  // of all images, of a block
  FastDivision by_columns, by_rows;
};

template <int R, int S, int Stride>
__global__ void __launch_bounds__(kQuads* kStrips)
    weight_kernel(const __grid_constant__ Strips p, const float* dy, const float* x, float* parts) {
  __shared__ float4 table[kStrips / 4][R * S][kQuads];
  const int quad = static_cast<int>(threadIdx.x) % kQuads, strip = static_cast<int>(threadIdx.x) / kQuads;
  const int c = (static_cast<int>(blockIdx.y) * kQuads + quad) * 4;
  const int first = static_cast<int>(blockIdx.x) * p.per_block, end = min(first + p.per_block, p.strips);
  const float4 zero = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  float4 sum[R][S];
#pragma unroll
  for (int r = 0; r < R; ++r)
#pragma unroll
    for (int s = 0; s < S; ++s) sum[r][s] = zero;
  for (int at = c < p.c ? first + strip : end; at < end; at += kStrips) {
    int column, a;
    const int image = p.by_rows.quotient(p.by_columns.quotient(at, column), a);
    const int first_b = column * kStrip, first_h = a * Stride - p.pad_top, first_w = first_b * Stride - p.pad_left;
    const float* grad = dy + ((static_cast<int64_t>(image) * p.out_h + a) * p.out_w + first_b) * p.c + c;
    float4 g[kStrip];
#pragma unroll
    for (int b = 0; b < kStrip; ++b) g[b] = first_b + b < p.out_w ? load4(grad + static_cast<int64_t>(b) * p.c) : zero;
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const int h = first_h + r;
      const float* from = x + ((static_cast<int64_t>(image) * p.h + h) * p.w + first_w) * p.c + c;
#pragma unroll
      for (int j = 0; j < (kStrip - 1) * Stride + S; ++j) {
        const bool inside = h >= 0 && h < p.h && first_w + j >= 0 && first_w + j < p.w;
        const float4 value = inside ? load4(from + static_cast<int64_t>(j) * p.c) : zero;
#pragma unroll
        for (int b = 0; b < kStrip; ++b) {
          const int s = j - b * Stride;
          if (s >= 0 && s < S) add_product(sum[r][s], value, g[b]);
        }
      }
    }
  }
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int tap = 0; tap < R * S; ++tap) {
    float4 all = sum[tap / S][tap % S];
#pragma unroll
    for (int distance = kQuads; distance < 32; distance *= 2)
      add(all,
          make_float4(__shfl_xor_sync(0xffffffffu, all.x, distance), __shfl_xor_sync(0xffffffffu, all.y, distance),
                      __shfl_xor_sync(0xffffffffu, all.z, distance), __shfl_xor_sync(0xffffffffu, all.w, distance)));
    if (lane < kQuads) table[warp][tap][lane] = all;
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < R * S * kQuads; i += kQuads * kStrips) {
    const int tap = i / kQuads, channel = (static_cast<int>(blockIdx.y) * kQuads + i % kQuads) * 4;
    if (channel >= p.c) continue;
    float4 all = table[0][tap][i % kQuads];
    for (int w = 1; w < kStrips / 4; ++w) add(all, table[w][tap][i % kQuads]);
    *reinterpret_cast<float4*>(parts + (static_cast<int64_t>(blockIdx.x) * R * S + tap) * p.c + channel) = all;
  }
}

template <int R, int Stride>
bool run_strips(const Conv2dShape& g, const float* dy, const float* x, float* dweight) {
  const int64_t columns = (g.out_w() + kStrip - 1) / kStrip, strips = g.n * g.out_h() * columns;
  if (strips == 0) return true;
  const int64_t blocks_c = (g.c / 4 + kQuads - 1) / kQuads;
  const int64_t wanted = (1056 + blocks_c - 1) / blocks_c, least = 2 * kStrips;
  const int64_t per_block = std::max(least, (strips + wanted - 1) / wanted);
  const int64_t blocks = (strips + per_block - 1) / per_block;
  const Strips p{static_cast<int>(g.h),       static_cast<int>(g.w),        static_cast<int>(g.c),
                 static_cast<int>(g.pad_top), static_cast<int>(g.pad_left), static_cast<int>(g.out_h()),
                 static_cast<int>(g.out_w()), static_cast<int>(strips),     static_cast<int>(per_block),
                 FastDivision(columns),       FastDivision(g.out_h())};
  float* parts = device_scratch_floats(kSlotParts, blocks * R * R * g.c);
  launch(weight_kernel<R, R, Stride>, dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(blocks_c)),
         kQuads * kStrips, 0, p, dy, x, parts);
  sum_channels(blocks, int64_t{R} * R * g.c, parts, dweight);
  return true;
}

template <typename... Pointers>
bool aligned(Pointers... pointers) {
  return ((reinterpret_cast<uintptr_t>(pointers) % 16 == 0) && ...);
}

bool fits(const Conv2dShape& g) {
  return g.groups == g.c && g.k == g.c && g.c % 4 == 0 && g.r == g.s && (g.r == 3 || g.r == 5) &&
         g.stride_h == g.stride_w && g.stride_h <= 2 && g.dilation_h == 1 && g.dilation_w == 1;
}

Patches patches_of(const Conv2dShape& g) {
  Patches p{};
  p.h = static_cast<int>(g.h);
  p.w = static_cast<int>(g.w);
  p.c = static_cast<int>(g.c);
  p.pad_top = static_cast<int>(g.pad_top);
  p.pad_left = static_cast<int>(g.pad_left);
  p.out_h = static_cast<int>(g.out_h());
  p.out_w = static_cast<int>(g.out_w());
  return p;
}

}  // namespace

bool depthwise_forward(const Conv2dShape& g, const float* x, const float* weight, const float* bias,
                       const float* residual, bool relu, float* y) {
  if (!fits(g) || !aligned(x, weight, bias, residual, y)) return false;
  const Patches p = patches_of(g);
  const auto run = g.r == 3 ? (g.stride_h == 1 ? run_patches<3, 1, false> : run_patches<3, 2, false>)
                            : (g.stride_h == 1 ? run_patches<5, 1, false> : run_patches<5, 2, false>);
  return run(g.n, p, x, weight, bias, residual, relu, y);
}

bool depthwise_backward_data(const Conv2dShape& g, const float* dy, const float* weight, const float* bias, float* dx) {
  if (!fits(g) || g.stride_h != 1 || !aligned(dy, weight, bias, dx)) return false;
  Patches p = patches_of(g);
  std::swap(p.h, p.out_h);
  std::swap(p.w, p.out_w);
  p.pad_top = static_cast<int>(g.r - 1 - g.pad_top);
  p.pad_left = static_cast<int>(g.s - 1 - g.pad_left);
  const auto run = g.r == 3 ? run_patches<3, 1, true> : run_patches<5, 1, true>;
  return run(g.n, p, dy, weight, bias, nullptr, false, dx);
}

bool depthwise_backward_weight(const Conv2dShape& g, const float* dy, const float* x, float* dweight) {
  if (!fits(g) || !aligned(dy, x)) return false;
  const auto run = g.r == 3 ? (g.stride_h == 1 ? run_strips<3, 1> : run_strips<3, 2>)
                            : (g.stride_h == 1 ? run_strips<5, 1> : run_strips<5, 2>);
  return run(g, dy, x, dweight);
}

}  // namespace medmpi::cuda
