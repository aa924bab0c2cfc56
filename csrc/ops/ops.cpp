#include "ops/ops.h"

#include <cstring>

namespace medmpi {

namespace generic {
extern const Ops ops;
}
#ifdef MEDMPI_X86
namespace avx2 {
extern const Ops ops;
}
namespace avx512 {
extern const Ops ops;
}
#endif
#ifdef MEDMPI_CUDA
namespace cuda {
extern const Ops ops;
int device_count(const char** reason);
}  // namespace cuda
#endif

namespace {

struct Table {
  const Ops* runnable[3] = {};
  int count = 0;

  Table() {
#ifdef MEDMPI_X86
    __builtin_cpu_init();
    const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                          __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
    if (has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512cd"))
      runnable[count++] = &avx512::ops;
    if (has_avx2) runnable[count++] = &avx2::ops;
#endif
    runnable[count++] = &generic::ops;
    active = runnable[0];
  }

  const Ops* active;
};

Table& table() {
  static Table instance;
  return instance;
}

}  // namespace

const Ops* const* runnable_ops(int* count) {
  *count = table().count;
  return table().runnable;
}

const Ops* find_ops(const char* name) {
  for (int i = 0; i < table().count; ++i)
    if (!std::strcmp(table().runnable[i]->name, name)) return table().runnable[i];
  return nullptr;
}

const Ops* device_ops() {
#ifdef MEDMPI_CUDA
  static const Ops* found = [] {
    const char* reason = "";
    return cuda::device_count(&reason) > 0 ? &cuda::ops : nullptr;
  }();
  return found;
#else
  return nullptr;
#endif
}

const Ops& host_ops() { return *table().active; }
void use_host_ops(const Ops& ops) { table().active = &ops; }

}  // namespace medmpi
