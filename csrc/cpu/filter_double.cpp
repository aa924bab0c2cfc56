// float64 filtering. Built without contraction to fused multiply-adds: with the same order of sums every result then
// has the same bits as scipy.ndimage's.
#include "cpu/filter_axis.h"

namespace medmpi::MEDMPI_ISA {

void correlate1d_double(const AxisFilter& f, const double* taps, const double* x, double* y);
void correlate1d_double(const AxisFilter& f, const double* taps, const double* x, double* y) {
  filter_axis(f, taps, x, y);
}

}  // namespace medmpi::MEDMPI_ISA
