#pragma once
// Convolutions as matrix products that nobody ever writes out: loaders that find the operands of gemm_tile.cuh in
// images and filters as they lie in memory. Pixels are counted in lattices: point (image, a, b) of a lattice reads the
// source pixel (first + a * step + tap * tap_step). The outputs of a forward pass are one lattice, with the stride as
// its step; the inputs that a strided convolution's gradient is wanted for are stride_h * stride_w of them, each with
// the taps that reach it (sub-pixel decomposition: no zeros are inserted and none multiplied).
#include "cuda/fast_division.cuh"
#include "cuda/gemm_tile.cuh"
#include "ops/conv2d.h"

namespace medmpi::cuda {

/// A lattice of result pixels and the taps that they read.
struct Lattice {
  int rows;                   // points, over all images
  FastDivision image, width;  // points of an image, and of a row
  int first_h, first_w;       // source pixel of point (0, 0) at the first tap
  FastDivision taps_w;
  int depth;             // taps times the source's channels of a group
  int first_r, first_s;  // filter position of the first tap
  int out_h, out_w;      // result pixel of point (0, 0)
};

/// A source image and how a lattice walks it.
struct Source {
  const void* data;  // float32 or bf16, as the tile's elements
  int64_t count;     // of elements
  int h, w;
  int64_t pixel;          // channels of all groups
  FastDivision channels;  // of a group
  int step_h, step_w, tap_step_h, tap_step_w;
};

/// The depth is (tap, channel), the lines are lattice points: A of forward and of backward-data. Vector is the
/// number of elements of a copy: those of 16 bytes where such pieces are aligned, else 1.
template <class T, int Vector>
class PixelGather {
 public:
  using Element = typename T::Element;
  using Layout = DepthContiguous<Element, T::kM, T::kDepth>;

  /// `channel`: first of the group; `row`: the block's first lattice point.
  __device__ __forceinline__ PixelGather(const Source& source, const Lattice& lattice, int64_t channel, int row)
      : source_(source), lattice_(lattice), data_(static_cast<const Element*>(source.data) + channel) {
#pragma unroll
    for (int i = 0; i < kLines; ++i) {
      const int point = row + Layout::line_of(slot(i));
      int rest, b;
      const int image = lattice.image.quotient(point, rest), a = lattice.width.quotient(rest, b);
      h_[i] = a * source.step_h + lattice.first_h;
      w_[i] = b * source.step_w + lattice.first_w;
      pixel_[i] = (image * source.h + h_[i]) * source.w + w_[i];
      if (point >= lattice.rows) h_[i] = -(1 << 30);  // outside with every tap
    }
  }

  __device__ __forceinline__ void load(Element* operand, int step) const {
    const int depth = column() + step * T::kDepth;
    int channel, j;
    const int tap = source_.channels.quotient(depth, channel), i = lattice_.taps_w.quotient(tap, j);
    const int down = i * source_.tap_step_h, right = j * source_.tap_step_w, move = down * source_.w + right;
#pragma unroll
    for (int line = 0; line < kLines; ++line) {
      const bool inside = depth < lattice_.depth &&
                          static_cast<unsigned>(h_[line] + down) < static_cast<unsigned>(source_.h) &&
                          static_cast<unsigned>(w_[line] + right) < static_cast<unsigned>(source_.w);
      const Element* from = data_ + (pixel_[line] + move) * source_.pixel + channel;
      copy_async<static_cast<int>(sizeof(Element)) * Vector, true>(operand + Layout::at(slot(line), column()),
                                                                   inside ? from : data_, inside);
    }
  }

 private:
  static constexpr int kColumns = T::kDepth / Vector, kTogether = T::kThreads / kColumns, kLines = T::kM / kTogether;
  static_assert(T::kThreads % kColumns == 0 && T::kM % kTogether == 0, "every thread loads as much");

  __device__ static __forceinline__ int column() { return static_cast<int>(threadIdx.x) % kColumns * Vector; }
  __device__ static __forceinline__ int slot(int line) {
    return static_cast<int>(threadIdx.x) / kColumns + line * kTogether;
  }

  const Source& source_;
  const Lattice& lattice_;
  const Element* data_;
  int h_[kLines], w_[kLines], pixel_[kLines];
};

/// The depth is the rows of a matrix in memory, the lines are its columns: the filters of a forward pass, and dy where
/// weights are wanted.
template <class T, int Vector>
class MatrixRows {
 public:
  using Element = typename T::Element;
  using Layout = LineContiguous<Element, T::kN, T::kDepth>;

  /// Columns [column, column + columns) are wanted; `stride` is from row to row.
  __device__ __forceinline__ MatrixRows(const Element* data, int64_t stride, int rows, int column, int columns)
      : data_(data), stride_(stride), rows_(rows), line_(column + line()), wanted_(line_ < columns) {}

  __device__ __forceinline__ void load(Element* operand, int step) const {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int depth = static_cast<int>(threadIdx.x) / kColumns + i * kTogether, row = step * T::kDepth + depth;
      const bool inside = wanted_ && row < rows_;
      const Element* from = data_ + row * stride_ + line_;
      copy_async<static_cast<int>(sizeof(Element)) * Vector, false>(operand + Layout::at(line(), depth),
                                                                    inside ? from : data_, inside);
    }
  }

 private:
  static constexpr int kColumns = T::kN / Vector, kTogether = T::kThreads / kColumns, kRows = T::kDepth / kTogether;
  static_assert(T::kThreads % kColumns == 0 && T::kDepth % kTogether == 0, "every thread loads as much");

  __device__ static __forceinline__ int line() { return static_cast<int>(threadIdx.x) % kColumns * Vector; }

  const Element* data_;
  int64_t stride_;
  int rows_, line_;
  bool wanted_;
};

/// Where filters lie: element (tap, line, channel) at (tap * lines + line) * stride + channel.
struct Filters {
  const void* data;
  int64_t count;
  int64_t stride;  // output channels of all groups
  int lines;       // input channels of a group
  int s;           // taps of a filter's row
  int step_r, step_s;
};

/// The depth is (tap, output channel), the lines are input channels: B of backward-data, filters read in place.
template <class T, int Vector>
class FilterColumns {
 public:
  using Element = typename T::Element;
  using Layout = DepthContiguous<Element, T::kN, T::kDepth>;

  /// `channels`: output channels of a group; `channel`: first of the group; `line`: the block's first input channel.
  __device__ __forceinline__ FilterColumns(const Filters& filters, const Lattice& lattice, const FastDivision& channels,
                                           int64_t channel, int line)
      : filters_(filters),
        lattice_(lattice),
        channels_(channels),
        data_(static_cast<const Element*>(filters.data) + channel),
        line_(line) {}

  __device__ __forceinline__ void load(Element* operand, int step) const {
    const int depth = column() + step * T::kDepth;
    int channel, j;
    const int tap = channels_.quotient(depth, channel), i = lattice_.taps_w.quotient(tap, j);
    const int r = lattice_.first_r + i * filters_.step_r, s = lattice_.first_s + j * filters_.step_s;
    const int first = (r * filters_.s + s) * filters_.lines;
#pragma unroll
    for (int i_line = 0; i_line < kLines; ++i_line) {
      const int slot = static_cast<int>(threadIdx.x) / kColumns + i_line * kTogether;
      const int line = line_ + Layout::line_of(slot);
      const bool inside = depth < lattice_.depth && line < filters_.lines;
      const Element* from = data_ + (first + line) * filters_.stride + channel;
      copy_async<static_cast<int>(sizeof(Element)) * Vector, false>(operand + Layout::at(slot, column()),
                                                                    inside ? from : data_, inside);
    }
  }

 private:
  static constexpr int kColumns = T::kDepth / Vector, kTogether = T::kThreads / kColumns, kLines = T::kN / kTogether;
  static_assert(T::kThreads % kColumns == 0 && T::kN % kTogether == 0, "every thread loads as much");

  __device__ static __forceinline__ int column() { return static_cast<int>(threadIdx.x) % kColumns * Vector; }

  const Filters& filters_;
  const Lattice& lattice_;
  const FastDivision& channels_;
  const Element* data_;
  int line_;
};

/// The depth is lattice points, the lines are (tap, channel): A where weights are wanted.
template <class T, int Vector>
class PixelRows {
 public:
  using Element = typename T::Element;
  using Layout = LineContiguous<Element, T::kM, T::kDepth>;

  /// `channel`: first of the group; `line`: the block's first (tap, channel).
  __device__ __forceinline__ PixelRows(const Source& source, const Lattice& lattice, int64_t channel, int line)
      : source_(source), lattice_(lattice) {
    int of_group, j;
    const int all = line + this->line();
    const int tap = source.channels.quotient(all, of_group), i = lattice.taps_w.quotient(tap, j);
    wanted_ = all < lattice.depth;
    first_h_ = lattice.first_h + i * source.tap_step_h;
    first_w_ = lattice.first_w + j * source.tap_step_w;
    data_ = static_cast<const Element*>(source.data) + channel + of_group;
  }

  __device__ __forceinline__ void load(Element* operand, int step) const {
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      const int depth = static_cast<int>(threadIdx.x) / kColumns + row * kTogether, point = step * T::kDepth + depth;
      int rest, b;
      const int image = lattice_.image.quotient(point, rest), a = lattice_.width.quotient(rest, b);
      const int h = a * source_.step_h + first_h_, w = b * source_.step_w + first_w_;
      const bool inside = wanted_ && point < lattice_.rows &&
                          static_cast<unsigned>(h) < static_cast<unsigned>(source_.h) &&
                          static_cast<unsigned>(w) < static_cast<unsigned>(source_.w);
      const Element* from = data_ + ((image * source_.h + h) * source_.w + w) * source_.pixel;
      copy_async<static_cast<int>(sizeof(Element)) * Vector, true>(operand + Layout::at(line(), depth),
                                                                   inside ? from : data_, inside);
    }
  }

 private:
  static constexpr int kColumns = T::kM / Vector, kTogether = T::kThreads / kColumns, kRows = T::kDepth / kTogether;
  static_assert(T::kThreads % kColumns == 0 && T::kDepth % kTogether == 0, "every thread loads as much");

  __device__ static __forceinline__ int line() { return static_cast<int>(threadIdx.x) % kColumns * Vector; }

  const Source& source_;
  const Lattice& lattice_;
  const Element* data_;
  int first_h_, first_w_;
  bool wanted_;
};

/// Whether pieces of `width` of rows of `count` elements from `data` on lie at multiples of 16 bytes, in each group.
inline bool in_pieces(const void* data, int64_t count, int64_t group_count, int64_t width = 4) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && count % width == 0 && group_count % width == 0;
}

}  // namespace medmpi::cuda
