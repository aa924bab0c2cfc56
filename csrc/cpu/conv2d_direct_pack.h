#pragma once
// What the direct convolution works through, and how its operands are packed.
#include "cpu/conv2d_finish.h"
#include "cpu/conv2d_tile.h"
#include "cpu/sizes.h"
#include "cpu/threads.h"
#include "cpu/tile.h"

namespace medmpi::MEDMPI_ISA {
namespace {

constexpr int64_t kWide = 2 * kLanes;  // output channels of a group

/// A filter position: input position = output position * step + (dh, dw).
struct Tap {
  int64_t dh, dw, row;  // row: the weight row of its first channel
};

/// One set of output positions that share their taps.
struct Pass {
  int64_t oh, ow, y_offset;
  int64_t tap_begin, tap_end;
  int64_t step_begin, step_end;
  int64_t weight;  // floats before its packed weights
};

/// A convolution as the loops see it. Channels are those of one group.
struct Plan {
  int64_t n, h, w, c, k, groups;
  int64_t step_h, step_w;
  int64_t x_image, x_row, x_pixel, y_image, y_row, y_pixel;
  Pass* passes;
  int64_t pass_count;
  Tap* taps;
  int64_t tap_count;
  Step* steps;
  int64_t oh, ow;   // largest of the passes
  bool whole_rows;  // taps come as filter rows of kRowTaps neighbouring pixels
  // the packed input
  int64_t dh, dw, phases_h, phases_w, packed_w, blocks;
  // weights
  bool turned;
  int64_t ldw, weight_group;
  int64_t packed_weights;  // floats of one group
  const float* bias;
  bool relu;
  const Finish* finish;
};

/// Which outputs a unit computes.
struct Unit {
  int64_t image, images, row, rows;
};

/// Packs the weights of one step for the output channels [k0, k0 + width) into rows of `lanes`.
inline void pack_step(const Plan& plan, const Step& step, const float* weight, int64_t k0, int64_t width, int64_t lanes,
                      float* out) {
  if (!plan.turned) {
    const float* in = weight + (step.row + step.channel) * plan.ldw + k0;
    for (int64_t c = 0; c < step.channels; ++c, in += plan.ldw, out += lanes) {
      if (width == kWide) {
        store(out, load(in));
        store(out + kLanes, load(in + kLanes));
      } else {
        for (int64_t k = 0; k < lanes; ++k) out[k] = k < width ? in[k] : 0.0f;
      }
    }
    return;
  }
  pack_transposed(weight + (step.row + k0) * plan.ldw + step.channel, plan.ldw, width, step.channels, out, lanes,
                  lanes);
}

/// One packed line of one remainder: packed pixels `column * step_w + phase + dw` of input row `in`, null for padding.
inline void pack_line(const Plan& plan, const float* in, int64_t phase, float* out, int64_t block_stride) {
  const int64_t first = plan.dw + phase;
  int64_t begin = first < 0 ? smaller(ceil_div(-first, plan.step_w), plan.packed_w) : 0;
  int64_t end = plan.w > first ? smaller(ceil_div(plan.w - first, plan.step_w), plan.packed_w) : 0;
  if (!in || end < begin) begin = end = 0;
  const int64_t whole = plan.c / kPack, rest = plan.c % kPack;
  for (int64_t b = 0; b < plan.blocks; ++b) {
    float* line = out + b * block_stride;
    std::memset(line, 0, static_cast<size_t>(begin * kPack) * sizeof(float));
    std::memset(line + end * kPack, 0, static_cast<size_t>((plan.packed_w - end) * kPack) * sizeof(float));
  }
  for (int64_t j = begin; j < end; ++j) {
    const float* pixel = in + (first + j * plan.step_w) * plan.x_pixel;
    float* to = out + j * kPack;
    for (int64_t b = 0; b < whole; ++b, pixel += kPack, to += block_stride)
#pragma GCC unroll 4
      for (int v = 0; v < kPack; v += kLanes) store(to + v, load(pixel + v));
    for (int64_t c = 0; c < rest; ++c) to[c] = pixel[c];
  }
}

/// Packs all weights: for each group and pass [2 vectors of output channels][step][input channel][output channel].
inline void pack_weights(const Plan& plan, const float* weight, float* packed) {
  const int64_t wide = ceil_div(plan.k, kWide);
  for (int64_t i = 0; i < plan.pass_count; ++i) {
    const Pass& pass = plan.passes[i];
    const int64_t depth = (pass.tap_end - pass.tap_begin) * plan.c;
#pragma omp parallel for schedule(static) collapse(2)
    for (int64_t group = 0; group < plan.groups; ++group)
      for (int64_t s = pass.step_begin; s < pass.step_end; ++s)
        for (int64_t o = 0; o < wide; ++o) {  // innermost: weights are read in the order they lie
          const int64_t width = smaller(kWide, plan.k - o * kWide), lanes = width > kLanes ? kWide : kLanes;
          const Step& step = plan.steps[s];
          pack_step(plan, step, weight + group * plan.weight_group, o * kWide, width, lanes,
                    packed + group * plan.packed_weights + pass.weight + o * kWide * depth + step.before * lanes);
        }
  }
}

/// Packs what a unit reads of one group, `ph` rows of each remainder.
inline void pack_input(const Plan& plan, const Unit& unit, int64_t ph, const float* x, float* packed) {
  const int64_t line = plan.phases_w * plan.packed_w * kPack, block = plan.phases_h * ph * line;
  for (int64_t i = 0; i < unit.images; ++i)
    for (int64_t f = 0; f < plan.phases_h; ++f)
      for (int64_t q = 0; q < ph; ++q) {
        const int64_t row = (unit.row + q) * plan.step_h + f + plan.dh;
        const float* in = row >= 0 && row < plan.h ? x + (unit.image + i) * plan.x_image + row * plan.x_row : nullptr;
        float* out = packed + i * plan.blocks * block + (f * ph + q) * line;
        for (int64_t p = 0; p < plan.phases_w; ++p) pack_line(plan, in, p, out + p * plan.packed_w * kPack, block);
      }
}

}  // namespace
}  // namespace medmpi::MEDMPI_ISA
