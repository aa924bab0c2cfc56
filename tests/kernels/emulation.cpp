// Kernels with one mistake each, for test_emulation.py: `emulation NAME` prints what the emulation says of it.
#include <cuda_runtime.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <vector>

using medmpi::emulate::launch;

namespace {

__global__ void sums(int n, const float* x, float* y) {
  __shared__ float part[8];
  float sum = 0.0f;
  for (int i = static_cast<int>(threadIdx.x); i < n; i += static_cast<int>(blockDim.x)) sum += x[i];
  for (int d = 16; d; d /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, d);
  if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x == 0)
    for (unsigned i = 0; i < blockDim.x / 32; ++i) y[blockIdx.x] += part[i];
}

__global__ void part_of_a_block_meets() {
  if (threadIdx.x < 40) __syncthreads();
}
__global__ void two_barriers() {
  if (threadIdx.x < 32)
    __syncthreads();
  else
    __syncthreads();
}
__global__ void lane_left_out() {
  if (threadIdx.x != 3) __syncwarp();
}
__global__ void unwritten_shared(float* y) {
  auto* shared = static_cast<float*>(medmpi::emulate::dynamic_shared());
  if (threadIdx.x) shared[threadIdx.x] = 1.0f;
  __syncthreads();
  y[threadIdx.x] = shared[threadIdx.x];
}
__global__ void beyond_shared() {
  auto* shared = static_cast<float*>(medmpi::emulate::dynamic_shared());
  shared[threadIdx.x + 1] = 1.0f;
}
__global__ void missing_barrier(float* y) {
  auto* shared = static_cast<float*>(medmpi::emulate::dynamic_shared());
  shared[threadIdx.x] = 0.0f;
  __syncthreads();
  shared[threadIdx.x] = 1.0f;
  y[threadIdx.x] = shared[(threadIdx.x + 1) % blockDim.x];
}
__global__ void write_at(float* y, int i) { y[i] = 1.0f; }

struct Lane {
  int mine, sum;
};
__global__ void collective(int* y) {
  Lane lane{static_cast<int>(threadIdx.x), 0};
  medmpi::emulate::warp_collective(MEDMPI_SITE, 0xffffffffu, lane, [](Lane* const* all) {
    int sum = 0;
    for (int i = 0; i < 32; ++i) sum += all[i]->mine;
    for (int i = 0; i < 32; ++i) all[i]->sum = sum;
  });
  y[threadIdx.x] = lane.sum;
}

template <typename T>
T* device(size_t count) {
  T* p = nullptr;
  cudaMalloc(&p, count * sizeof(T));
  return p;
}
template <typename T>
std::vector<T> host(const T* p, size_t count) {
  std::vector<T> v(count);
  cudaMemcpy(v.data(), p, count * sizeof(T), cudaMemcpyDeviceToHost);
  return v;
}
/// A value of `p`; NaN without its sign.
double value(const float* p, size_t i) { return std::fabs(static_cast<double>(host(p, i + 1)[i])); }

}  // namespace

int main(int, char** arguments) {
  const char* name = arguments[1];
  const auto is = [&](const char* other) { return !std::strcmp(name, other); };
  float* y = device<float>(64);
  cudaStream_t stream;
  cudaStreamCreate(&stream);
  if (is("sums") || is("graph")) {
    const std::vector<float> ones(1000, 1.0f);
    float* x = device<float>(1000);
    cudaMemcpy(x, ones.data(), 4000, cudaMemcpyHostToDevice);
    if (is("sums")) {
      cudaMemset(y, 0, 256);
      launch(sums, 3, 256, 0, stream, 1000, x, y);
    } else {
      cudaGraph_t graph;
      cudaGraphExec_t exec;
      cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal);
      cudaMemsetAsync(y, 0, 256, stream);
      launch(sums, 3, 256, 0, stream, 1000, x, y);
      launch(sums, 3, 256, 0, stream, 1000, x, y);
      cudaStreamEndCapture(stream, &graph);
      std::printf("%g before, ", value(y, 0));
      cudaGraphInstantiate(&exec, graph);
      cudaGraphLaunch(exec, stream);
      cudaGraphLaunch(exec, stream);
    }
    std::printf("%g %g", value(y, 0), value(y, 2));
  }
  if (is("late copy") || is("late copy in order")) {
    float* mine = nullptr;
    cudaMallocHost(&mine, 4);
    cudaStream_t copies;
    cudaStreamCreate(&copies);
    cudaEvent_t copied;
    cudaEventCreate(&copied);
    mine[0] = 1.0f;
    cudaMemcpyAsync(y, mine, 4, cudaMemcpyHostToDevice, copies);
    cudaEventRecord(copied, copies);
    if (is("late copy")) mine[0] = 2.0f;  // too early
    float* z = device<float>(1);
    if (is("late copy in order")) cudaStreamWaitEvent(stream, copied, 0);
    cudaMemcpyAsync(z, y, 4, cudaMemcpyDeviceToDevice, stream);
    cudaStreamSynchronize(stream);
    std::printf("%d ", cudaEventQuery(copied) == cudaErrorNotReady);
    cudaStreamSynchronize(copies);
    std::printf("%g %g", value(y, 0), value(z, 0));
  }
  if (is("part of a block meets")) launch(part_of_a_block_meets, 2, 64, 0, stream);
  if (is("two barriers")) launch(two_barriers, 2, 64, 0, stream);
  if (is("lane left out")) launch(lane_left_out, 1, 32, 0, stream);
  if (is("unwritten shared")) {
    launch(unwritten_shared, 1, 32, 128, stream, y);
    std::printf("%g %g", value(y, 0), value(y, 1));
  }
  if (is("beyond shared")) launch(beyond_shared, 1, 32, 128, stream);
  if (is("missing barrier")) {
    launch(missing_barrier, 1, 32, 128, stream, y);
    std::printf("%g %g", value(y, 0), value(y, 31));
  }
  if (is("beyond allocation")) launch(write_at, 1, 1, 0, stream, y, 64);
  if (is("freed")) {
    cudaFree(y);
    launch(write_at, 1, 1, 0, stream, y, 0);
  }
  if (is("host reads device")) std::printf("%g", static_cast<double>(y[0]));
  if (is("kernel gets host memory")) {
    float mine = 0;
    launch(write_at, 1, 1, 0, stream, &mine, 0);
  }
  if (is("too many threads")) launch(write_at, 1, 1025, 0, stream, y, 0);
  if (is("wrong direction")) {
    float mine = 0;
    cudaMemcpy(&mine, y, 4, cudaMemcpyHostToDevice);
  }
  if (is("allocation in capture")) {
    cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal);
    device<float>(1);
  }
  if (is("wait in capture")) {
    cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal);
    cudaStreamSynchronize(stream);
    cudaGetLastError();
    cudaGraph_t graph;
    cudaStreamEndCapture(stream, &graph);
  }
  if (is("unset")) std::printf("%g", value(y, 0));
  if (is("collective")) {
    int* sum = device<int>(32);
    launch(collective, 1, 32, 0, stream, sum);
    std::printf("%d %d", host(sum, 32)[0], host(sum, 32)[31]);
  }
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) std::printf("%s", cudaGetErrorString(error));
}
