// The convolution family's table: sizes become lattices (see conv2d_tile.cuh), and who computes what.
#include <numeric>
#include <stdexcept>
#include <string>

#include "cuda/channel_sums.cuh"
#include "cuda/conv2d_product.cuh"
#include "cuda/conv2d_weight.cuh"
#include "cuda/grouped.cuh"
#include "ops/conv2d.h"

namespace medmpi::cuda {
namespace {

constexpr int64_t kMostPixels = int64_t{1} << 30;  // kernels count pixels, and steps between them, in 32 bits
constexpr int64_t kMostSize = int64_t{1} << 28;

void require_fits(const Conv2dShape& g) {
  const auto reach = [](int64_t size, int64_t before, int64_t after, int64_t dilation, int64_t taps) {
    return size < kMostSize && before < kMostSize && after < kMostSize && dilation * (taps - 1) < kMostSize;
  };
  if (g.n * g.h * g.w >= kMostPixels || g.n * g.out_h() * g.out_w() >= kMostPixels ||
      g.r * g.s * std::max(g.c, g.k) >= kMostPixels || g.stride_h >= kMostSize || g.stride_w >= kMostSize ||
      !reach(g.h, g.pad_top, g.pad_bottom, g.dilation_h, g.r) ||
      !reach(g.w, g.pad_left, g.pad_right, g.dilation_w, g.s))
    throw std::runtime_error("conv2d: sizes of 2^30 pixels or more, expected fewer on a CUDA device");
}

/// Groups so small that a product's tile would be mostly empty; filters with more weights than a grid has rows are left
/// to products.
bool has_small_groups(const Conv2dShape& g) {
  return g.groups > 1 && (g.group_c() < 8 || g.group_k() < 8) && g.r * g.s * g.group_c() < 65536;
}

int64_t filter_count(const Conv2dShape& g) { return g.r * g.s * g.group_c() * g.k; }

/// The outputs of a forward pass as a lattice over x.
Lattice outputs_of(const Conv2dShape& g) {
  Lattice lattice{};
  lattice.rows = static_cast<int>(g.n * g.out_h() * g.out_w());
  lattice.image = FastDivision(g.out_h() * g.out_w());
  lattice.width = FastDivision(g.out_w());
  lattice.first_h = static_cast<int>(-g.pad_top);
  lattice.first_w = static_cast<int>(-g.pad_left);
  lattice.taps_w = FastDivision(g.s);
  lattice.depth = static_cast<int>(g.r * g.s * g.group_c());
  return lattice;
}

Source input_of(const Conv2dShape& g, const float* x) {
  return {x,
          g.n * g.h * g.w * g.c,
          static_cast<int>(g.h),
          static_cast<int>(g.w),
          g.c,
          FastDivision(g.group_c()),
          static_cast<int>(g.stride_h),
          static_cast<int>(g.stride_w),
          static_cast<int>(g.dilation_h),
          static_cast<int>(g.dilation_w)};
}

void forward(const Conv2dShape& g, Conv2dAlgo, const float* x, const float* weight, const Conv2dEpilogue& e, float* y) {
  require_fits(g);
  const int64_t rows = g.n * g.out_h() * g.out_w();
  if (rows == 0) {
    if (e.mean) {
      set_zero(e.mean, static_cast<size_t>(g.k) * sizeof(double));
      set_zero(e.m2, static_cast<size_t>(g.k) * sizeof(double));
    }
    return;
  }
  if (has_small_groups(g)) {
    if (!depthwise_forward(g, x, weight, e.bias, e.residual, e.relu, y))
      grouped_forward(g, x, weight, e.bias, e.residual, e.relu, y);
    if (e.mean) channel_moments(rows, g.k, y, e.mean, e.m2);
    return;
  }
  Product p{};
  p.source = input_of(g, x);
  p.filters = {weight, filter_count(g), g.k, static_cast<int>(g.group_c()), static_cast<int>(g.s), 1, 1};
  p.finish = {y,
              e.bias,
              e.residual,
              e.relu,
              false,
              g.k,
              static_cast<int>(g.group_k()),
              static_cast<int>(g.out_h()),
              static_cast<int>(g.out_w()),
              1,
              1,
              nullptr,
              nullptr};
  p.groups = static_cast<int>(g.groups);
  p.lattices = 1;
  p.lattice[0] = outputs_of(g);
  conv2d_forward_product(p, e.mean, e.m2);
}

/// Along one axis, the inputs with the same remainder as `first` on division by the stride: how many, which taps reach
/// them, and where in the output. Taps `tap`, `tap` + stride / gcd(stride, dilation), ... do, none if `taps` is 0.
struct Phase {
  int64_t first, count, tap, taps, out;

  Phase(int64_t first_input, int64_t size, int64_t pad, int64_t stride, int64_t dilation, int64_t filter)
      : first(first_input), count((size - first_input + stride - 1) / stride), tap(0), taps(0), out(0) {
    const int64_t every = stride / std::gcd(stride, dilation);
    while (tap < filter && tap < every && (first + pad - tap * dilation) % stride != 0) ++tap;
    if (tap >= filter || tap >= every) return;
    taps = (filter - 1 - tap) / every + 1;
    out = (first + pad - tap * dilation) / stride;
  }
};

void backward_data(const Conv2dShape& g, Conv2dAlgo, const float* dy, const float* weight, const float* bias,
                   float* dx) {
  require_fits(g);
  if (g.n * g.h * g.w == 0) return;
  if (has_small_groups(g)) {
    if (!depthwise_backward_data(g, dy, weight, bias, dx)) grouped_backward_data(g, dy, weight, bias, dx);
    return;
  }
  const int64_t every_r = g.stride_h / std::gcd(g.stride_h, g.dilation_h);
  const int64_t every_s = g.stride_w / std::gcd(g.stride_w, g.dilation_w);
  Product p{};
  p.source = {dy,
              g.n * g.out_h() * g.out_w() * g.k,
              static_cast<int>(g.out_h()),
              static_cast<int>(g.out_w()),
              g.k,
              FastDivision(g.group_k()),
              1,
              1,
              static_cast<int>(-every_r * g.dilation_h / g.stride_h),
              static_cast<int>(-every_s * g.dilation_w / g.stride_w)};
  p.filters = {weight,
               filter_count(g),
               g.k,
               static_cast<int>(g.group_c()),
               static_cast<int>(g.s),
               static_cast<int>(every_r),
               static_cast<int>(every_s)};
  p.finish = {dx,
              bias,
              nullptr,
              false,
              false,
              g.c,
              static_cast<int>(g.group_c()),
              static_cast<int>(g.h),
              static_cast<int>(g.w),
              static_cast<int>(g.stride_h),
              static_cast<int>(g.stride_w),
              nullptr,
              nullptr};
  p.groups = static_cast<int>(g.groups);
  for (int64_t top = 0; top < std::min(g.stride_h, g.h); ++top)
    for (int64_t left = 0; left < std::min(g.stride_w, g.w); ++left) {
      const Phase down(top, g.h, g.pad_top, g.stride_h, g.dilation_h, g.r);
      const Phase right(left, g.w, g.pad_left, g.stride_w, g.dilation_w, g.s);
      Lattice& lattice = p.lattice[p.lattices++];
      lattice.rows = static_cast<int>(g.n * down.count * right.count);
      lattice.image = FastDivision(down.count * right.count);
      lattice.width = FastDivision(right.count);
      lattice.first_h = static_cast<int>(down.out);
      lattice.first_w = static_cast<int>(right.out);
      lattice.taps_w = FastDivision(std::max<int64_t>(1, right.taps));
      lattice.depth = static_cast<int>(down.taps * right.taps * g.group_k());
      lattice.first_r = static_cast<int>(down.tap);
      lattice.first_s = static_cast<int>(right.tap);
      lattice.out_h = static_cast<int>(top);
      lattice.out_w = static_cast<int>(left);
      if (p.lattices < kLattices) continue;
      conv2d_data_product(p);
      p.lattices = 0;
    }
  if (p.lattices > 0) conv2d_data_product(p);
}

void backward_weight(const Conv2dShape& g, Conv2dAlgo, const float* dy, const float* x, float* dweight) {
  require_fits(g);
  if (g.n * g.out_h() * g.out_w() == 0) return;
  if (has_small_groups(g)) {
    if (!depthwise_backward_weight(g, dy, x, dweight)) grouped_backward_weight(g, dy, x, dweight);
    return;
  }
  WeightProduct p{};
  p.source = input_of(g, x);
  p.lattice = outputs_of(g);
  p.dy = dy;
  p.dweight = dweight;
  p.pixel = g.k;
  p.channels = static_cast<int>(g.group_k());
  p.groups = static_cast<int>(g.groups);
  conv2d_weight_product(p);
}

}  // namespace

extern const Conv2dOps conv2d;
const Conv2dOps conv2d = {forward, backward_data, nullptr, backward_weight, sum_channels};

}  // namespace medmpi::cuda
