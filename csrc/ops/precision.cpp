#include "ops/precision.h"

#include <atomic>

namespace medmpi {
namespace {

std::atomic<Precision> active{Precision::fp32};

}  // namespace

Precision precision() { return active.load(std::memory_order_relaxed); }
void set_precision(Precision precision) { active.store(precision, std::memory_order_relaxed); }

}  // namespace medmpi
