#pragma once
#include <cstdint>

namespace medmpi {

/// Max pooling of x (n, h, w, c) to y (n, p, q, c) by windows of r x s, `dilation` apart. Padding is never the maximum.
struct MaxPool {
  int64_t n, h, w, c, p, q, r, s;
  int64_t stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
};

/// Windows of an average along one axis: output i is the sum of inputs begin[i] .. end[i]-1 over size[i] (which may
/// count padding); input j is in the windows first[j] .. last[j]-1.
struct Windows {
  int64_t in, out;
  const int32_t *begin, *end, *size, *first, *last;
};

struct PoolOps {
  /// `index` holds each maximum's place in its window, row by row: 0 .. r s - 1 <= 254. The first of equals wins; NaN
  /// is a maximum, and the last NaN wins, as in torch.
  void (*max)(const MaxPool& shape, const float* x, float* y, uint8_t* index);
  void (*max_wide)(const MaxPool& shape, const float* x, float* y, int32_t* index);
  void (*max_backward)(const MaxPool& shape, const float* dy, const uint8_t* index, float* dx);
  void (*max_backward_wide)(const MaxPool& shape, const float* dy, const int32_t* index, float* dx);
  /// x (n, rows.in, columns.in, c) to y (n, rows.out, columns.out, c).
  void (*average)(int64_t n, int64_t c, const Windows& rows, const Windows& columns, const float* x, float* y);
  void (*average_backward)(int64_t n, int64_t c, const Windows& rows, const Windows& columns, const float* dy,
                           float* dx);
};

}  // namespace medmpi
