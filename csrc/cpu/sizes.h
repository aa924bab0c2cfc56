#pragma once
// Arithmetic on sizes.
#include <cstdint>

namespace medmpi::MEDMPI_ISA {
namespace {

constexpr int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/// Whether an array of floats is too large to stay in the caches, so that rows should be asked for ahead; that costs
/// more than it gains where they do stay.
constexpr bool is_far(int64_t values) { return values > 1 << 20; }

}  // namespace
}  // namespace medmpi::MEDMPI_ISA
