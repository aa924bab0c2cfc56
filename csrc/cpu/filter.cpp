// float32 filtering. The two-dimensional form reads and writes memory once: rows are filtered into a ring of lines
// that stays in the second-level cache, columns are filtered from the ring. Scratch slots: 12 padded line, 13 line
// table, 14 ring.
#include "ops/filter.h"

#include "cpu/filter_axis.h"

namespace medmpi::MEDMPI_ISA {

void correlate1d_double(const AxisFilter& f, const double* taps, const double* x, double* y);

namespace {

void correlate1d(const AxisFilter& f, const float* taps, const float* x, float* y) { filter_axis(f, taps, x, y); }

/// Result rows that are made from the ring at a time.
constexpr int64_t kRows = 16;

struct Plane {
  const AxisFilter& rows;
  const AxisFilter& columns;
  const float* row_taps;
  const float* column_taps;
  const float* x;
  float* y;
};

/// Result rows [first, last) of one plane.
void filter_rows(const Plane& p, int64_t first, int64_t last) {
  const int64_t width = p.columns.n * p.columns.inner, radius = p.rows.radius, h = p.rows.n;
  const int64_t stride = width + 2 * 16;  // lines a power of two apart would share cache sets
  const int64_t ring = kRows + 2 * radius;
  float* padded =
      static_cast<float*>(scratch(12, static_cast<size_t>(width + 2 * p.columns.radius * p.columns.inner) * 4));
  auto** lines = static_cast<const float**>(scratch(13, static_cast<size_t>(ring) * sizeof(float*)));
  auto* buffer = static_cast<float*>(scratch(14, static_cast<size_t>((ring + 1) * stride) * 4));
  float* constant = buffer + ring * stride;
  for (int64_t j = 0; j < width; ++j) constant[j] = static_cast<float>(p.rows.outside);

  int64_t next = first - radius < 0 ? 0 : first - radius;  // the first row that is not in the ring yet
  for (int64_t i = first; i < last; i += kRows) {
    const int64_t count = i + kRows < last ? kRows : last - i;
    const int64_t needed = i + count + radius < h ? i + count + radius : h;
    for (; next < needed; ++next) {
      pad_line(p.columns, p.x + next * width, padded);
      filter_along(p.columns, p.column_taps, padded, buffer + next % ring * stride);
    }
    for (int64_t t = 0; t < count + 2 * radius; ++t) {
      const int64_t from = p.rows.source(i - radius + t);
      lines[t] = from < 0 ? constant : buffer + from % ring * stride;
    }
    filter_across(p.rows.symmetry, radius, p.row_taps, lines + radius, count, width, p.y + i * width);
  }
}

void correlate2d(const AxisFilter& rows, const AxisFilter& columns, const float* row_taps, const float* column_taps,
                 const float* x, float* y) {
  const int64_t plane = rows.n * columns.n * columns.inner;
  // a strip filters 2 * radius rows that its neighbours filter too: make it tall
  const int64_t tall = 8 * rows.radius > 64 ? 8 * rows.radius : 64;
  const int64_t strips = rows.n / tall > 1 ? rows.n / tall : 1;
  for_chunks(rows.outer * strips, 1, [=, &rows, &columns](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const Plane p{rows, columns, row_taps, column_taps, x + b / strips * plane, y + b / strips * plane};
      const int64_t s = b % strips;
      filter_rows(p, s * rows.n / strips, (s + 1) * rows.n / strips);
    }
  });
}

}  // namespace

extern const FilterOps filter;
const FilterOps filter = {correlate1d, correlate1d_double, correlate2d};

}  // namespace medmpi::MEDMPI_ISA
