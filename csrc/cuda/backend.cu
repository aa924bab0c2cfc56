// The CUDA table. It lists no device until its kernels are built: every family is null.
#include <cuda_runtime.h>

#include "ops/ops.h"

namespace medmpi::cuda {

extern const Ops ops;
const Ops ops = {"cuda"};

/// Number of devices; 0 with a reason where there is no driver.
int device_count(const char** reason) {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  *reason = status == cudaSuccess ? "" : cudaGetErrorString(status);
  return status == cudaSuccess ? count : 0;
}

}  // namespace medmpi::cuda
