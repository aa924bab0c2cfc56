// Fills this instruction set's table.
#include "ops/ops.h"

#define MEDMPI_STRING(x) #x
#define MEDMPI_NAME(isa) "cpu." MEDMPI_STRING(isa)

namespace medmpi::MEDMPI_ISA {

extern const ActivationOps activation;
extern const BatchNormOps batchnorm;
extern const ClaheOps clahe;
extern const CollectiveOps collective;
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
extern const ProbeOps probe;
extern const RecursiveOps recursive;
extern const ResizeOps resize;
extern const WarpOps warp;

extern const Ops ops;
const Ops ops = {MEDMPI_NAME(MEDMPI_ISA),
                 &activation,
                 &batchnorm,
                 &clahe,
                 &collective,
                 &color,
                 &conv2d,
                 &copy,
                 &dropout,
                 &elementwise,
                 &filter,
                 &histogram,
                 &linear,
                 &loss,
                 &median_filter,
                 &optimizer,
                 &pool,
                 &probe,
                 &recursive,
                 &resize,
                 &warp};

}  // namespace medmpi::MEDMPI_ISA
