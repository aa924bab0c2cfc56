#pragma once

namespace medmpi {

/// How a device multiplies matrices and convolves: float32 arithmetic, or tensor cores with operands rounded to TF32 or
/// bfloat16. Sums are float32 in every case; so are the arrays.
enum class Precision { fp32, tf32, bf16 };

/// Of the whole process; starts as fp32. Host arrays are always computed in float32.
Precision precision();
void set_precision(Precision precision);

}  // namespace medmpi
