#pragma once
// The binary interface of DLPack 0.8 (https://dmlc.github.io/dlpack), the part that is used.
#include <cstdint>

namespace medmpi::dlpack {

enum Device : int32_t { kCuda = 2, kCudaManaged = 13 };
enum Code : uint8_t { kInt = 0, kUInt = 1, kFloat = 2 };

struct Tensor {
  void* data;
  int32_t device_type, device_id;
  int32_t ndim;
  uint8_t code, bits;
  uint16_t lanes;
  int64_t* shape;
  int64_t* strides;  // in elements, null for C-contiguous
  uint64_t byte_offset;
};

struct ManagedTensor {
  Tensor tensor;
  void* context;
  void (*deleter)(ManagedTensor*);
};

}  // namespace medmpi::dlpack
