// Direct convolution. A unit of work is a stretch of output rows of one image, or a few whole small images. Its input
// is packed once into scratch as [image][16 channels][row][column][16], with zeros where the padding is and with the
// columns and rows of a strided convolution sorted by remainder, so that neighbouring output pixels read neighbouring
// packed pixels whatever the stride. Weights are packed as [2 vectors of output channels][16 input channels and filter
// position][input channel][output channel]. Loop order: output channels, a first-level-cache full of weights, pixels.
// The gradient for the input of a strided convolution is one such pass for each remainder of the position by the
// stride. The order in which a sum is added up is fixed by the shape, so neither units nor threads change a bit.
#include "cpu/conv2d_direct.h"

#include "cpu/conv2d_direct_pack.h"
#include "cpu/threads.h"
#include "cpu/tile.h"
#include "ops/scratch.h"
#include "ops/weight_cache.h"

namespace medmpi::MEDMPI_ISA {
namespace {

// Scratch slots. Of the calling thread: weights, lists. Of each thread: packed input, a narrow group's results.
constexpr int kSlotWeight = 0, kSlotLists = 1, kSlotInput = 2, kSlotNarrow = 3;

constexpr int64_t kWeightBytes = 20 << 10;   // of weights that stay in the first-level cache
constexpr int64_t kInputBytes = 640 << 10;   // of packed input that stay in the second-level cache
constexpr int64_t kOutputBytes = 768 << 10;  // of a band's outputs, which each group of channels revisits
constexpr int64_t kManyWeights = 512 << 10;  // bytes from which a unit should be large
constexpr int64_t kFewPixels = 256, kMorePixels = 768;
constexpr int64_t kLonePixels = 64;  // of a unit, for which weights come from memory as fast as they are used

MEDMPI_INLINE float* floats(int slot, int64_t count) {
  return static_cast<float*>(scratch(slot, static_cast<size_t>(count + 1) * sizeof(float)));
}

/// Lists of at most this many taps, steps and passes.
void allocate_lists(Plan& plan, int64_t taps, int64_t passes) {
  const int64_t blocks = ceil_div(plan.c, kPack);
  const auto bytes = [](int64_t count, size_t size) { return (static_cast<size_t>(count) * size + 63) / 64 * 64; };
  const size_t tap_bytes = bytes(taps, sizeof(Tap)), pass_bytes = bytes(passes, sizeof(Pass));
  char* base =
      static_cast<char*>(scratch(kSlotLists, tap_bytes + pass_bytes + bytes(taps * blocks, sizeof(Step)) + 64));
  plan.taps = reinterpret_cast<Tap*>(base);
  plan.passes = reinterpret_cast<Pass*>(base + tap_bytes);
  plan.steps = reinterpret_cast<Step*>(base + tap_bytes + pass_bytes);
  plan.tap_count = plan.pass_count = 0;
}

/// Sizes that follow from taps and passes.
void settle(Plan& plan) {
  int64_t dh0 = 0, dh1 = 0, dw0 = 0, dw1 = 0;
  for (int64_t t = 0; t < plan.tap_count; ++t) {
    const Tap& tap = plan.taps[t];
    dh0 = t ? smaller(dh0, tap.dh) : tap.dh;
    dh1 = t ? larger(dh1, tap.dh) : tap.dh;
    dw0 = t ? smaller(dw0, tap.dw) : tap.dw;
    dw1 = t ? larger(dw1, tap.dw) : tap.dw;
  }
  plan.oh = plan.ow = 0;
  for (int64_t i = 0; i < plan.pass_count; ++i) {
    plan.oh = larger(plan.oh, plan.passes[i].oh);
    plan.ow = larger(plan.ow, plan.passes[i].ow);
  }
  plan.dh = dh0;
  plan.dw = dw0;
  plan.phases_h = smaller(plan.step_h, dh1 - dh0 + 1);
  plan.phases_w = smaller(plan.step_w, dw1 - dw0 + 1);
  plan.packed_w = plan.ow + (dw1 - dw0) / plan.step_w;
  plan.blocks = ceil_div(plan.c, kPack);
}

/// Rows of one remainder that `rows` output rows read.
int64_t packed_h(const Plan& plan, int64_t rows) {
  int64_t reach = 0;
  for (int64_t t = 0; t < plan.tap_count; ++t) reach = larger(reach, plan.taps[t].dh - plan.dh);
  return rows + reach / plan.step_h;
}

int64_t packed_image(const Plan& plan, int64_t rows) {
  return plan.blocks * plan.phases_h * packed_h(plan, rows) * plan.phases_w * plan.packed_w * kPack;
}

/// Where each stretch of channels of each tap lies for units of this many rows.
void make_steps(Plan& plan, int64_t rows) {
  const int64_t ph = packed_h(plan, rows), line = plan.phases_w * plan.packed_w;
  int64_t count = 0, weight = 0;
  for (int64_t i = 0; i < plan.pass_count; ++i) {
    Pass& pass = plan.passes[i];
    pass.step_begin = count;
    int64_t before = 0;
    pass.weight = weight;
    for (int64_t b = 0; b < plan.blocks; ++b)
      for (int64_t t = pass.tap_begin; t < pass.tap_end; ++t) {
        const Tap& tap = plan.taps[t];
        const int64_t eh = tap.dh - plan.dh, ew = tap.dw - plan.dw;
        const int64_t row = eh % plan.step_h * ph + eh / plan.step_h;
        const int64_t column = ew % plan.step_w * plan.packed_w + ew / plan.step_w;
        const int64_t channels = smaller(kPack, plan.c - b * kPack);
        plan.steps[count++] = {((b * plan.phases_h * ph + row) * line + column) * kPack, channels, tap.row, b * kPack,
                               before};
        before += channels;
      }
    pass.step_end = count;
    weight += (pass.tap_end - pass.tap_begin) * plan.c * ceil_div(plan.k, kLanes) * kLanes;
  }
  plan.packed_weights = weight;
}

/// All pixels of a unit for one group of output channels and one stretch of steps.
template <int Vectors>
void sweep(const Plan& plan, const Pass& pass, const Unit& unit, int64_t ph, TileWork& work, const float* packed,
           float* y, int64_t y_image) {
  const int64_t line = plan.phases_w * plan.packed_w * kPack;
  const int64_t image = plan.blocks * plan.phases_h * ph * line;
  const int64_t rows = smaller(unit.rows, pass.oh - unit.row);
  work.a_row = line;
  for (int64_t i = 0; i < unit.images; ++i)
    for (int64_t q = 0; q < rows;) {
      const bool pair = !plan.whole_rows && q + 1 < rows && pass.ow <= kTilePixels / 2;
      const int64_t tiles = ceil_div(pass.ow, plan.whole_rows ? kRowPixels<Vectors> : kTilePixels);
      const float* a = packed + i * image + q * line;
      float* to = y + i * y_image + q * work.y_row;
      for (int64_t t = 0, j = 0; t < tiles; ++t) {
        const int64_t columns = (pass.ow - j) / (tiles - t);
        const Tile tile = plan.whole_rows ? row_tile_of<Vectors>(static_cast<int>(columns))
                          : pair          ? Tiles<Vectors>::kPair[columns]
                                          : Tiles<Vectors>::kSingle[columns];
        tile(work, a + j * kPack, to + j * work.y_pixel);
        work.ahead += work.count * work.ahead_lines * kLine;
        j += columns;
      }
      q += pair ? 2 : 1;
    }
}

/// One unit for the output-channel groups [o0, o1).
void run_unit(const Plan& plan, const Unit& unit, int64_t ph, int64_t group, int64_t o0, int64_t o1, const float* x,
              const float* weight, float* y) {
  float* packed =
      floats(kSlotInput, unit.images * plan.blocks * plan.phases_h * ph * plan.phases_w * plan.packed_w * kPack);
  pack_input(plan, unit, ph, x + group * plan.c, packed);
  float* narrow = plan.k % kLanes ? floats(kSlotNarrow, unit.images * unit.rows * plan.ow * kWide) : nullptr;
  for (int64_t i = 0; i < plan.pass_count; ++i) {
    const Pass& pass = plan.passes[i];
    if (unit.row >= pass.oh || pass.ow == 0) continue;
    const int64_t rows = smaller(unit.rows, pass.oh - unit.row);
    const int64_t depth = (pass.tap_end - pass.tap_begin) * plan.c;
    for (int64_t o = o0; o < o1; ++o) {
      const int64_t width = smaller(kWide, plan.k - o * kWide), lanes = width > kLanes ? kWide : kLanes;
      float start[kWide] = {};
      if (plan.bias)
        std::memcpy(start, plan.bias + group * plan.k + o * kWide, static_cast<size_t>(width) * sizeof(float));
      float* out = y + pass.y_offset + unit.image * plan.y_image + unit.row * plan.y_row + group * plan.k + o * kWide;
      const bool whole = width == lanes;
      TileWork work{};
      work.y_row = whole ? plan.y_row : pass.ow * lanes;
      work.y_pixel = whole ? plan.y_pixel : lanes;
      float* target = whole ? out : narrow;
      const int64_t y_image = whole ? plan.y_image : rows * pass.ow * lanes;
      const float* w = weight + group * plan.packed_weights + pass.weight + o * kWide * depth;
      const int64_t chunks = larger(1, ceil_div(depth * lanes * 4, kWeightBytes));
      const int64_t pixels = unit.images * rows * pass.ow, tiles = ceil_div(pixels, kTilePixels);
      int64_t step = pass.step_begin, done = 0;
      for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        work.steps = plan.steps + step;
        work.weight = w + done * lanes;
        work.start = chunk ? nullptr : start;
        work.relu = plan.relu && chunk + 1 == chunks;
        const int64_t goal = depth * (chunk + 1) / chunks;
        while (step < pass.step_end && done < goal)
          for (int64_t t = plan.whole_rows ? kRowTaps : 1; t > 0; --t) done += plan.steps[step++].channels;
        work.count = plan.steps + step - work.steps;
        work.ahead = w + done * lanes;
        work.ahead_lines =
            pixels <= kLonePixels && work.count ? ceil_div(done * lanes, (chunk + 1) * tiles * work.count * kLine) : 0;
        if (lanes == kWide)
          sweep<2>(plan, pass, unit, ph, work, packed, target, y_image);
        else
          sweep<1>(plan, pass, unit, ph, work, packed, target, y_image);
      }
      if (whole) continue;
      for (int64_t image = 0; image < unit.images; ++image)
        for (int64_t q = 0; q < rows; ++q)
          for (int64_t j = 0; j < pass.ow; ++j) {
            const float* from = narrow + ((image * rows + q) * pass.ow + j) * lanes;
            float* to = out + image * plan.y_image + q * plan.y_row + j * plan.y_pixel;
            for (int64_t k = 0; k < width; ++k) to[k] = from[k];
          }
    }
  }
  if (!plan.finish) return;
  const int64_t channels = smaller(o1 * kWide, plan.k) - o0 * kWide;
  for (int64_t i = 0; i < unit.images; ++i)
    plan.finish->wrote_pixels(((unit.image + i) * plan.oh + unit.row) * plan.ow, unit.rows * plan.ow, channels);
}

/// Cuts the work into units and shares them out.
void run(Plan& plan, const float* x, const float* weight, float* y) {
  settle(plan);
  if (plan.n == 0 || plan.oh == 0 || plan.ow == 0) return;
  const int64_t threads = omp_get_max_threads();
  const int64_t goal = plan.tap_count * plan.c * plan.k * 4 > kManyWeights ? kMorePixels : kFewPixels;
  const int64_t limit = kInputBytes / 4;
  int64_t rows = plan.oh, images = 1;
  const auto too_large = [&](int64_t band) {
    const int64_t pixels = band * plan.ow;
    return packed_image(plan, band) > limit || (pixels * plan.k * 4 > kOutputBytes && pixels >= 2 * goal);
  };
  if (too_large(rows) || (plan.n < threads && plan.oh * plan.ow >= threads * goal)) {
    while (rows > 1 && (too_large(rows) || plan.n * ceil_div(plan.oh, rows) < threads))
      rows = smaller(rows - 1, ceil_div(plan.oh, ceil_div(plan.oh, rows) + 1));
  } else {
    images = larger(1, smaller(goal / (plan.oh * plan.ow), 2 * limit / packed_image(plan, rows)));
    images = smaller(images, ceil_div(plan.n, threads));
    images = ceil_div(plan.n, ceil_div(ceil_div(plan.n, images), threads) * threads);
  }
  const int64_t ph = packed_h(plan, rows);
  make_steps(plan, rows);
  bool ready;
  float* packed = packed_weights(kSlotWeight, plan.groups * plan.packed_weights + 1, ready);
  if (!ready) pack_weights(plan, weight, packed);
  const int64_t bands = ceil_div(plan.oh, rows), units = plan.groups * ceil_div(plan.n, images) * bands;
  const int64_t wide = ceil_div(plan.k, kWide), parts = smaller(wide, ceil_div(threads, units));
#pragma omp parallel for schedule(dynamic, 1)
  for (int64_t item = 0; item < units * parts; ++item) {
    const int64_t part = item % parts, band = item / parts % bands, rest = item / parts / bands;
    const int64_t group = rest % plan.groups, first = rest / plan.groups * images;
    const Unit unit{first, smaller(images, plan.n - first), band * rows, smaller(rows, plan.oh - band * rows)};
    run_unit(plan, unit, ph, group, wide * part / parts, wide * (part + 1) / parts, x, packed, y);
  }
}

}  // namespace

void conv2d_direct_forward(const Conv2dShape& g, const float* x, const float* weight, const Epilogue& e, float* y) {
  const int64_t oh = g.out_h(), ow = g.out_w(), gc = g.group_c();
  Plan plan{};
  plan.n = g.n, plan.h = g.h, plan.w = g.w, plan.c = gc, plan.k = g.group_k(), plan.groups = g.groups;
  plan.step_h = g.stride_h, plan.step_w = g.stride_w;
  plan.x_image = g.h * g.w * g.c, plan.x_row = g.w * g.c, plan.x_pixel = g.c;
  plan.y_image = oh * ow * g.k, plan.y_row = ow * g.k, plan.y_pixel = g.k;
  plan.ldw = g.k, plan.weight_group = plan.k;
  plan.bias = e.bias, plan.relu = e.relu, plan.finish = e.finish;
  plan.whole_rows = kRowTaps > 0 && g.s == kRowTaps && g.stride_w == 1 && g.dilation_w == 1;
  allocate_lists(plan, g.r * g.s, 1);
  for (int64_t r = 0; r < g.r; ++r)
    for (int64_t s = 0; s < g.s; ++s)
      plan.taps[plan.tap_count++] = {r * g.dilation_h - g.pad_top, s * g.dilation_w - g.pad_left, (r * g.s + s) * gc};
  plan.passes[plan.pass_count++] = {oh, ow, 0, 0, plan.tap_count, 0, 0, 0};
  run(plan, x, weight, y);
}

void conv2d_direct_backward_data(const Conv2dShape& g, const float* dy, const float* weight, const float* bias,
                                 float* dx) {
  const int64_t oh = g.out_h(), ow = g.out_w(), gc = g.group_c();
  Plan plan{};
  plan.n = g.n, plan.h = oh, plan.w = ow, plan.c = g.group_k(), plan.k = gc, plan.groups = g.groups;
  plan.step_h = plan.step_w = 1;
  plan.x_image = oh * ow * g.k, plan.x_row = ow * g.k, plan.x_pixel = g.k;
  plan.y_image = g.h * g.w * g.c, plan.y_row = g.stride_h * g.w * g.c, plan.y_pixel = g.stride_w * g.c;
  plan.turned = true, plan.ldw = g.k, plan.weight_group = plan.c;
  plan.bias = bias;
  plan.whole_rows = kRowTaps > 0 && g.s == kRowTaps && g.stride_w == 1 && g.dilation_w == 1;
  allocate_lists(plan, g.r * g.s, g.stride_h * g.stride_w);
  for (int64_t a = 0; a < g.stride_h && a < g.h; ++a)
    for (int64_t b = 0; b < g.stride_w && b < g.w; ++b) {
      Pass pass{ceil_div(g.h - a, g.stride_h),
                ceil_div(g.w - b, g.stride_w),
                (a * g.w + b) * g.c,
                plan.tap_count,
                0,
                0,
                0,
                0};
      for (int64_t r = 0; r < g.r; ++r)
        for (int64_t s = g.s - 1; s >= 0; --s) {  // from the left
          const int64_t top = a + g.pad_top - r * g.dilation_h, left = b + g.pad_left - s * g.dilation_w;
          if (top % g.stride_h || left % g.stride_w) continue;
          plan.taps[plan.tap_count++] = {top / g.stride_h, left / g.stride_w, (r * g.s + s) * gc};
        }
      pass.tap_end = plan.tap_count;
      plan.passes[plan.pass_count++] = pass;
    }
  run(plan, dy, weight, dx);
}

}  // namespace medmpi::MEDMPI_ISA
