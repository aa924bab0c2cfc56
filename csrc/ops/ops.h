#pragma once
// The contract between bindings and backends: one table of function pointers per op family.
// A null pointer means: not built for that backend. Tables hold addresses only, so that the loader fills them: no code
// of an instruction set runs before the machine is known to have it.
#include <cstddef>
#include <cstdint>

#include "ops/activation.h"
#include "ops/batchnorm.h"
#include "ops/clahe.h"
#include "ops/collective.h"
#include "ops/color.h"
#include "ops/conv2d.h"
#include "ops/copy.h"
#include "ops/dropout.h"
#include "ops/elementwise.h"
#include "ops/filter.h"
#include "ops/histogram.h"
#include "ops/linear.h"
#include "ops/loss.h"
#include "ops/median.h"
#include "ops/optimizer.h"
#include "ops/pool.h"
#include "ops/probe.h"
#include "ops/recursive.h"
#include "ops/resize.h"
#include "ops/warp.h"

namespace medmpi {

struct Ops {
  const char* name;  // "cpu.avx2", ...
  const ActivationOps* activation;
  const BatchNormOps* batchnorm;
  const ClaheOps* clahe;
  const CollectiveOps* collective;
  const ColorOps* color;
  const Conv2dOps* conv2d;
  const CopyOps* copy;
  const DropoutOps* dropout;
  const ElementwiseOps* elementwise;
  const FilterOps* filter;
  const HistogramOps* histogram;
  const LinearOps* linear;
  const LossOps* loss;
  const MedianOps* median_filter;
  const OptimizerOps* optimizer;
  const PoolOps* pool;
  const ProbeOps* probe;
  const RecursiveOps* recursive;
  const ResizeOps* resize;
  const WarpOps* warp;
};

/// The tables this machine can run, best first; `count` is set to their number.
const Ops* const* runnable_ops(int* count);

/// The table called `name`, or null when it is unknown or this machine cannot run it.
const Ops* find_ops(const char* name);

/// The table for arrays on a device, or null where none is built or no device is found.
const Ops* device_ops();

/// The table in use for host arrays; starts as the best one.
const Ops& host_ops();
void use_host_ops(const Ops& ops);

}  // namespace medmpi
