#pragma once
// Border modes by scipy.ndimage's names.
#include "bind/call.h"
#include "ops/filter.h"

namespace medmpi {

inline Border border_of(const Call& call, const std::string& mode) {
  if (mode == "reflect" || mode == "grid-mirror") return Border::reflect;
  if (mode == "constant" || mode == "grid-constant") return Border::constant;
  if (mode == "nearest") return Border::nearest;
  if (mode == "mirror") return Border::mirror;
  if (mode == "wrap" || mode == "grid-wrap") return Border::wrap;
  call.bad("mode is '" + mode + "', expected reflect, constant, nearest, mirror or wrap");
}

}  // namespace medmpi
