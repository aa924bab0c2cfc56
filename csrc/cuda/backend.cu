// Fills the table for arrays on a device. What the ranks of a node sum, and what benchmarks probe, is in host memory.
#include "ops/ops.h"

namespace medmpi::cuda {

extern const ActivationOps activation;
extern const BatchNormOps batchnorm;
extern const ClaheOps clahe;
extern const ColorOps color;
extern const Conv2dOps conv2d;
extern const CopyOps copy;
extern const DropoutOps dropout;
extern const ElementwiseOps elementwise;
extern const FilterOps filter;
extern const HistogramOps histogram;
extern const LinearOps linear;
extern const LossOps loss;
extern const MedianOps median_filter;
extern const OptimizerOps optimizer;
extern const PoolOps pool;
extern const RecursiveOps recursive;
extern const ResizeOps resize;
extern const WarpOps warp;

extern const Ops ops;
const Ops ops = {"cuda",         &activation, &batchnorm,   &clahe,  nullptr,    &color,  &conv2d,
                 &copy,          &dropout,    &elementwise, &filter, &histogram, &linear, &loss,
                 &median_filter, &optimizer,  &pool,        nullptr, &recursive, &resize, &warp};

}  // namespace medmpi::cuda
