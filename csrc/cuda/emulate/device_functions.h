#pragma once
// What the CUDA language has beyond C++: qualifiers, indices, barriers, warp operations, atomics and intrinsics.
// Atomics on floating-point numbers are left out on purpose: results must not depend on an order.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "cuda/emulate/execute.h"
#include "cuda/emulate/vector_types.h"

#define __global__
#define __device__
#define __host__
#define __constant__
#define __shared__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __grid_constant__

#define threadIdx (::medmpi::emulate::current->thread)
#define blockIdx (::medmpi::emulate::current->block)
#define blockDim (::medmpi::emulate::current->block_size)
#define gridDim (::medmpi::emulate::current->grid_size)
constexpr int warpSize = 32;

#define MEDMPI_NAMED_SITE(name) (::medmpi::emulate::Site{__FILE__, __LINE__, name})
#define __syncthreads() ::medmpi::emulate::block_barrier(MEDMPI_NAMED_SITE("__syncthreads"))
#define __syncwarp(...) ::medmpi::emulate::WarpBarrier{MEDMPI_NAMED_SITE("__syncwarp")}(__VA_ARGS__)
#define __shfl_sync(...) ::medmpi::emulate::shuffle(MEDMPI_NAMED_SITE("__shfl_sync"), __VA_ARGS__)
#define __shfl_xor_sync(...) ::medmpi::emulate::shuffle_xor(MEDMPI_NAMED_SITE("__shfl_xor_sync"), __VA_ARGS__)
#define __shfl_down_sync(...) ::medmpi::emulate::shuffle_down(MEDMPI_NAMED_SITE("__shfl_down_sync"), __VA_ARGS__)
#define __shfl_up_sync(...) ::medmpi::emulate::shuffle_up(MEDMPI_NAMED_SITE("__shfl_up_sync"), __VA_ARGS__)
#define __ballot_sync(...) ::medmpi::emulate::ballot(MEDMPI_NAMED_SITE("__ballot_sync"), __VA_ARGS__)
#define __any_sync(...) (::medmpi::emulate::ballot(MEDMPI_NAMED_SITE("__any_sync"), __VA_ARGS__) != 0)
#define __all_sync(...) ::medmpi::emulate::all(MEDMPI_NAMED_SITE("__all_sync"), __VA_ARGS__)
#define __match_any_sync(...) ::medmpi::emulate::match(MEDMPI_NAMED_SITE("__match_any_sync"), __VA_ARGS__)
#define __activemask() ::medmpi::emulate::active_lanes()
#define __syncthreads_or(predicate) ::medmpi::emulate::block_or(MEDMPI_NAMED_SITE("__syncthreads_or"), predicate)

namespace medmpi::emulate {

struct WarpBarrier {
  Site site;
  void operator()(unsigned mask = 0xffffffffu) const {
    meet(site, mask, nullptr, [](void* const*, void*) {}, nullptr);
  }
};

/// What a shuffle reads from a lane that takes no part: NaN, or a number that is not easily mistaken.
template <typename T>
T nothing() {
  T v;
  std::memset(&v, 0xff, sizeof v);
  return v;
}

template <typename T>
struct Shuffled {
  T value;
  int from;
  T result;
};

template <typename T>
T exchange(const Site& site, unsigned mask, T value, int from) {
  Shuffled<T> mine{value, from, nothing<T>()};
  warp_collective(site, mask, mine, [](Shuffled<T>* const* lane) {
    for (int i = 0; i < 32; ++i)
      if (lane[i] && lane[lane[i]->from]) lane[i]->result = lane[lane[i]->from]->value;
  });
  return mine.result;
}

inline int own_lane() { return static_cast<int>(current->lane); }

template <typename T>
T shuffle(const Site& site, unsigned mask, T value, int from, int width = 32) {
  return exchange(site, mask, value, own_lane() / width * width + (from & (width - 1)));
}
template <typename T>
T shuffle_xor(const Site& site, unsigned mask, T value, int change, int width = 32) {
  const int me = own_lane(), from = me ^ change;
  return exchange(site, mask, value, from / width <= me / width ? from : me);
}
template <typename T>
T shuffle_down(const Site& site, unsigned mask, T value, unsigned by, int width = 32) {
  const int me = own_lane(), from = me + static_cast<int>(by);
  return exchange(site, mask, value, from / width == me / width ? from : me);
}
template <typename T>
T shuffle_up(const Site& site, unsigned mask, T value, unsigned by, int width = 32) {
  const int me = own_lane(), from = me - static_cast<int>(by);
  return exchange(site, mask, value, from >= me / width * width ? from : me);
}

struct Vote {
  bool yes;
  unsigned result;
};
inline unsigned ballot(const Site& site, unsigned mask, bool predicate) {
  Vote mine{predicate, 0};
  warp_collective(site, mask, mine, [](Vote* const* lane) {
    unsigned votes = 0;
    for (int i = 0; i < 32; ++i)
      if (lane[i] && lane[i]->yes) votes |= 1u << i;
    for (int i = 0; i < 32; ++i)
      if (lane[i]) lane[i]->result = votes;
  });
  return mine.result;
}
inline bool all(const Site& site, unsigned mask, bool predicate) { return ballot(site, mask, !predicate) == 0; }

template <typename T>
unsigned match(const Site& site, unsigned mask, T value) {
  struct Mine {
    T value;
    unsigned result;
  } mine{value, 0};
  warp_collective(site, mask, mine, [](Mine* const* lane) {
    for (int i = 0; i < 32; ++i)
      for (int j = 0; j < 32 && lane[i]; ++j)
        if (lane[j] && lane[j]->value == lane[i]->value) lane[i]->result |= 1u << j;
  });
  return mine.result;
}

/// Two barriers around a flag of the block.
inline int block_or(const Site& site, int predicate) {
  static int found;
  block_barrier(site);
  found = 0;
  block_barrier(site);
  if (predicate) found = 1;
  block_barrier(site);
  const int result = found;
  block_barrier(site);
  return result;
}

}  // namespace medmpi::emulate

inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}
[[noreturn]] inline void __trap() { std::abort(); }
inline void __nanosleep(unsigned) {}
inline long long clock64() { return 0; }

// --- atomics --------------------------------------------------------------------------------------------------------

#define MEDMPI_ATOMICS(type)                              \
  inline type atomicAdd(type* p, type v) {                \
    const type old = *p;                                  \
    *p = static_cast<type>(old + v);                      \
    return old;                                           \
  }                                                       \
  inline type atomicMax(type* p, type v) {                \
    const type old = *p;                                  \
    *p = old < v ? v : old;                               \
    return old;                                           \
  }                                                       \
  inline type atomicMin(type* p, type v) {                \
    const type old = *p;                                  \
    *p = v < old ? v : old;                               \
    return old;                                           \
  }                                                       \
  inline type atomicOr(type* p, type v) {                 \
    const type old = *p;                                  \
    *p = old | v;                                         \
    return old;                                           \
  }                                                       \
  inline type atomicAnd(type* p, type v) {                \
    const type old = *p;                                  \
    *p = old & v;                                         \
    return old;                                           \
  }                                                       \
  inline type atomicExch(type* p, type v) {               \
    const type old = *p;                                  \
    *p = v;                                               \
    return old;                                           \
  }                                                       \
  inline type atomicCAS(type* p, type expected, type v) { \
    const type old = *p;                                  \
    if (old == expected) *p = v;                          \
    return old;                                           \
  }
MEDMPI_ATOMICS(int)
MEDMPI_ATOMICS(unsigned)
MEDMPI_ATOMICS(unsigned long long)
#undef MEDMPI_ATOMICS

// --- loads and stores -----------------------------------------------------------------------------------------------

template <typename T>
inline T __ldg(const T* p) {
  return *p;
}
template <typename T>
inline T __ldcs(const T* p) {
  return *p;
}
template <typename T>
inline T __ldcg(const T* p) {
  return *p;
}
template <typename T>
inline void __stcs(T* p, T v) {
  *p = v;
}
template <typename T>
inline void __stcg(T* p, T v) {
  *p = v;
}

// --- numbers --------------------------------------------------------------------------------------------------------

namespace medmpi::emulate {
template <typename To, typename From>
To bits(From v) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &v, sizeof to);
  return to;
}
}  // namespace medmpi::emulate

inline int __float_as_int(float v) { return medmpi::emulate::bits<int>(v); }
inline unsigned __float_as_uint(float v) { return medmpi::emulate::bits<unsigned>(v); }
inline float __int_as_float(int v) { return medmpi::emulate::bits<float>(v); }
inline float __uint_as_float(unsigned v) { return medmpi::emulate::bits<float>(v); }
inline long long __double_as_longlong(double v) { return medmpi::emulate::bits<long long>(v); }
inline double __longlong_as_double(long long v) { return medmpi::emulate::bits<double>(v); }

// Results of these are never contracted to fused multiply-adds (the emulation is built with -ffp-contract=off).
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __dsqrt_rn(double a) { return std::sqrt(a); }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __expf(float a) { return std::exp(a); }
inline float __logf(float a) { return std::log(a); }
inline float __log2f(float a) { return std::log2(a); }
inline float __powf(float a, float b) { return std::pow(a, b); }
inline float __saturatef(float a) { return a > 1.0f ? 1.0f : a > 0.0f ? a : 0.0f; }
inline float rsqrtf(float a) { return 1.0f / std::sqrt(a); }
inline double rsqrt(double a) { return 1.0 / std::sqrt(a); }
inline float __frsqrt_rn(float a) { return 1.0f / std::sqrt(a); }

inline int __float2int_rn(float a) { return static_cast<int>(std::nearbyint(a)); }
inline int __float2int_rz(float a) { return static_cast<int>(a); }
inline int __float2int_rd(float a) { return static_cast<int>(std::floor(a)); }
inline unsigned __float2uint_rn(float a) { return static_cast<unsigned>(std::nearbyint(a)); }
inline long long __double2ll_rn(double a) { return static_cast<long long>(std::nearbyint(a)); }
inline float __double2float_rn(double a) { return static_cast<float>(a); }
inline float __int2float_rn(int a) { return static_cast<float>(a); }
inline float __uint2float_rn(unsigned a) { return static_cast<float>(a); }

inline int __popc(unsigned a) { return __builtin_popcount(a); }
inline int __popcll(unsigned long long a) { return __builtin_popcountll(a); }
inline int __clz(int a) { return a ? __builtin_clz(static_cast<unsigned>(a)) : 32; }
inline int __clzll(long long a) { return a ? __builtin_clzll(static_cast<unsigned long long>(a)) : 64; }
inline int __ffs(int a) { return __builtin_ffs(a); }
inline unsigned __brev(unsigned a) {
  unsigned r = 0;
  for (int i = 0; i < 32; ++i) r |= (a >> i & 1u) << (31 - i);
  return r;
}
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>(static_cast<unsigned long long>(a) * b >> 32);
}
inline int __mulhi(int a, int b) { return static_cast<int>(static_cast<long long>(a) * b >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return static_cast<unsigned long long>(static_cast<unsigned __int128>(a) * b >> 64);
}
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  const unsigned long long both = a | static_cast<unsigned long long>(b) << 32;
  unsigned r = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned s = selector >> (4 * i) & 15;
    unsigned byte = static_cast<unsigned>(both >> (8 * (s & 7))) & 255u;
    if (s & 8) byte = byte & 128u ? 255u : 0u;
    r |= byte << (8 * i);
  }
  return r;
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned by) {
  by &= 31;
  return by ? high << by | low >> (32 - by) : high;
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned by) {
  by &= 31;
  return by ? low >> by | high << (32 - by) : low;
}

inline size_t __cvta_generic_to_shared(const void* p) { return reinterpret_cast<size_t>(p); }

// CUDA's overloads of the global namespace.
#define MEDMPI_MIN_MAX(type)                                \
  inline type min(type a, type b) { return b < a ? b : a; } \
  inline type max(type a, type b) { return a < b ? b : a; }
MEDMPI_MIN_MAX(int)
MEDMPI_MIN_MAX(unsigned)
MEDMPI_MIN_MAX(long)
MEDMPI_MIN_MAX(unsigned long)
MEDMPI_MIN_MAX(long long)
MEDMPI_MIN_MAX(unsigned long long)
#undef MEDMPI_MIN_MAX
inline float min(float a, float b) { return std::fmin(a, b); }
inline float max(float a, float b) { return std::fmax(a, b); }
inline double min(double a, double b) { return std::fmin(a, b); }
inline double max(double a, double b) { return std::fmax(a, b); }
