// Convolutions of many small groups, depthwise ones of any sizes among them: a thread for each result, neighbouring
// threads for neighbouring channels, and the caches for what they share.
#include <algorithm>

#include "cuda/channel_sums.cuh"
#include "cuda/grouped.cuh"

namespace medmpi::cuda {
namespace {

constexpr int kChannels = 32, kPixels = 8;  // threads of a block
constexpr int kSlotParts = 0;               // scratch

__global__ void forward_kernel(const __grid_constant__ Grouped g, const float* x, const float* weight,
                               const float* bias, const float* residual, bool relu, float* y) {
  const int k = static_cast<int>(blockIdx.y * kChannels + threadIdx.x);
  const int pixel = static_cast<int>(blockIdx.x * kPixels + threadIdx.y);
  if (k >= g.k || pixel >= g.out_pixels) return;
  int rest, b;
  const int image = g.out_image.quotient(pixel, rest), a = g.out_row.quotient(rest, b);
  const int first_c = g.per_filter.quotient(k) * g.group_c;
  float sum = 0.0f;
  for (int r = 0; r < g.r; ++r) {
    const int h = a * g.stride_h - g.pad_top + r * g.dilation_h;
    if (h < 0 || h >= g.h) continue;
    for (int s = 0; s < g.s; ++s) {
      const int w = b * g.stride_w - g.pad_left + s * g.dilation_w;
      if (w < 0 || w >= g.w) continue;
      const float* from = x + static_cast<int64_t>((image * g.h + h) * g.w + w) * g.c + first_c;
      const float* filter = weight + static_cast<int64_t>((r * g.s + s) * g.group_c) * g.k + k;
      for (int c = 0; c < g.group_c; ++c) sum += from[c] * filter[static_cast<int64_t>(c) * g.k];
    }
  }
  const int64_t at = static_cast<int64_t>(pixel) * g.k + k;
  if (bias) sum += bias[k];
  if (residual) sum += residual[at];
  y[at] = relu && sum < 0.0f ? 0.0f : sum;
}

__global__ void backward_data_kernel(const __grid_constant__ Grouped g, const float* dy, const float* weight,
                                     const float* bias, float* dx) {
  const int c = static_cast<int>(blockIdx.y * kChannels + threadIdx.x);
  const int pixel = static_cast<int>(blockIdx.x * kPixels + threadIdx.y);
  if (c >= g.c || pixel >= g.pixels) return;
  int rest, w, of_group;
  const int image = g.image.quotient(pixel, rest), h = g.row.quotient(rest, w);
  const int group = g.per_group.quotient(c, of_group), first_k = group * g.group_k;
  float sum = 0.0f;
  for (int r = 0; r < g.r; ++r) {
    const int down = h + g.pad_top - r * g.dilation_h, a = down / g.stride_h;
    if (down < 0 || a * g.stride_h != down || a >= g.out_h) continue;
    for (int s = 0; s < g.s; ++s) {
      const int right = w + g.pad_left - s * g.dilation_w, b = right / g.stride_w;
      if (right < 0 || b * g.stride_w != right || b >= g.out_w) continue;
      const float* from = dy + static_cast<int64_t>((image * g.out_h + a) * g.out_w + b) * g.k + first_k;
      const float* filter = weight + static_cast<int64_t>((r * g.s + s) * g.group_c + of_group) * g.k + first_k;
      for (int k = 0; k < g.group_k; ++k) sum += from[k] * filter[k];
    }
  }
  if (bias) sum += bias[c];
  dx[static_cast<int64_t>(pixel) * g.c + c] = sum;
}

/// A row of `parts` for each chunk of output pixels; blockIdx.y is (tap, channel of the group), blockIdx.z the chunk.
__global__ void backward_weight_kernel(const __grid_constant__ Grouped g, int per_chunk, const float* dy,
                                       const float* x, float* parts) {
  __shared__ float table[kPixels][kChannels];
  const int k = static_cast<int>(blockIdx.x * kChannels + threadIdx.x);
  const int line = static_cast<int>(blockIdx.y), tap = line / g.group_c, r = tap / g.s, s = tap % g.s;
  const int first = static_cast<int>(blockIdx.z) * per_chunk, end = min(first + per_chunk, g.out_pixels);
  float sum = 0.0f;
  if (k < g.k) {
    const int c = g.per_filter.quotient(k) * g.group_c + line % g.group_c;
    for (int pixel = first + static_cast<int>(threadIdx.y); pixel < end; pixel += kPixels) {
      int rest, b;
      const int image = g.out_image.quotient(pixel, rest), a = g.out_row.quotient(rest, b);
      const int h = a * g.stride_h - g.pad_top + r * g.dilation_h, w = b * g.stride_w - g.pad_left + s * g.dilation_w;
      if (h < 0 || h >= g.h || w < 0 || w >= g.w) continue;
      sum += dy[static_cast<int64_t>(pixel) * g.k + k] * x[static_cast<int64_t>((image * g.h + h) * g.w + w) * g.c + c];
    }
  }
  table[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || k >= g.k) return;
  for (int i = 1; i < kPixels; ++i) sum += table[i][threadIdx.x];
  parts[(static_cast<int64_t>(blockIdx.z) * gridDim.y + line) * g.k + k] = sum;
}

dim3 grid_of(int64_t pixels, int64_t channels) {
  return dim3(static_cast<unsigned>((pixels + kPixels - 1) / kPixels),
              static_cast<unsigned>((channels + kChannels - 1) / kChannels));
}

}  // namespace

Grouped::Grouped(const Conv2dShape& g)
    : h(static_cast<int>(g.h)),
      w(static_cast<int>(g.w)),
      c(static_cast<int>(g.c)),
      r(static_cast<int>(g.r)),
      s(static_cast<int>(g.s)),
      k(static_cast<int>(g.k)),
      group_c(static_cast<int>(g.group_c())),
      group_k(static_cast<int>(g.group_k())),
      stride_h(static_cast<int>(g.stride_h)),
      stride_w(static_cast<int>(g.stride_w)),
      dilation_h(static_cast<int>(g.dilation_h)),
      dilation_w(static_cast<int>(g.dilation_w)),
      pad_top(static_cast<int>(g.pad_top)),
      pad_left(static_cast<int>(g.pad_left)),
      out_h(static_cast<int>(g.out_h())),
      out_w(static_cast<int>(g.out_w())),
      pixels(static_cast<int>(g.n * g.h * g.w)),
      out_pixels(static_cast<int>(g.n * g.out_h() * g.out_w())),
      image(std::max<int64_t>(1, g.h * g.w)),
      row(std::max<int64_t>(1, g.w)),
      out_image(g.out_h() * g.out_w()),
      out_row(g.out_w()),
      per_filter(g.group_k()),
      per_group(g.group_c()) {}

void grouped_forward(const Conv2dShape& g, const float* x, const float* weight, const float* bias,
                     const float* residual, bool relu, float* y) {
  const Grouped sizes(g);
  launch(forward_kernel, grid_of(sizes.out_pixels, g.k), dim3(kChannels, kPixels), 0, sizes, x, weight, bias, residual,
         relu, y);
}

void grouped_backward_data(const Conv2dShape& g, const float* dy, const float* weight, const float* bias, float* dx) {
  const Grouped sizes(g);
  launch(backward_data_kernel, grid_of(sizes.pixels, g.c), dim3(kChannels, kPixels), 0, sizes, dy, weight, bias, dx);
}

void grouped_backward_weight(const Conv2dShape& g, const float* dy, const float* x, float* dweight) {
  const Grouped sizes(g);
  if (sizes.out_pixels == 0) return;
  const int64_t lines = g.r * g.s * g.group_c(), blocks = (g.k + kChannels - 1) / kChannels * lines;
  const int64_t chunks = std::clamp<int64_t>(2048 / blocks, 1, (sizes.out_pixels + 63) / 64);
  const int64_t per_chunk = (sizes.out_pixels + chunks - 1) / chunks;
  const int64_t used = (sizes.out_pixels + per_chunk - 1) / per_chunk;
  float* parts = device_scratch_floats(kSlotParts, used * lines * g.k);
  const dim3 grid(static_cast<unsigned>((g.k + kChannels - 1) / kChannels), static_cast<unsigned>(lines),
                  static_cast<unsigned>(used));
  launch(backward_weight_kernel, grid, dim3(kChannels, kPixels), 0, sizes, static_cast<int>(per_chunk), dy, x, parts);
  sum_channels(used, lines * g.k, parts, dweight);
}

}  // namespace medmpi::cuda
