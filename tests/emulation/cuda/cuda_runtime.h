// CUDA C++'s words, in C++: what the kernels use of them.
//
// A variable of __shared__ is a static one, since blocks run one after the other, in a section that
// grid.cpp fills with NaN before each. Threads are fibers (grid.h). The architecture is Hopper's.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "tests/emulation/cuda/cuda_runtime_api.h"
#include "tests/emulation/grid.h"

#define __CUDA_ARCH__ 900
#define __CUDA_ARCH_FEAT_SM90_ALL
#define __device__
#define __host__
#define __global__
#define __grid_constant__
#define __launch_bounds__(...)
#define __forceinline__ inline
#define __restrict__ __restrict
#ifdef __SANITIZE_ADDRESS__
#define __shared__ static  // with gaps around it, which a section would not have
#else
#define __shared__ static __attribute__((section("dmamba_shared")))
#endif
#define __align__(bytes) __attribute__((aligned(bytes)))

// Where a thread waits, if the caller does not say.
#define DMAMBA_HERE \
  dmamba::emulation::Place { __builtin_FILE(), __builtin_LINE() }
using EmulationPlace = dmamba::emulation::Place;

inline void __syncthreads(EmulationPlace here = DMAMBA_HERE) {
  dmamba::emulation::wait_for_block(here);
}
inline int __syncthreads_count(int counted, EmulationPlace here = DMAMBA_HERE) {
  return dmamba::emulation::wait_for_block(here, counted != 0);
}
inline int __syncthreads_or(int any, EmulationPlace here = DMAMBA_HERE) {
  return __syncthreads_count(any, here) != 0 ? 1 : 0;
}
inline void __syncwarp(uint32_t mask = ~0U, EmulationPlace here = DMAMBA_HERE) {
  dmamba::emulation::wait_for_warp(mask, here);
}
inline void __threadfence() {}

namespace dmamba::emulation {

/// What each lane of the warp has handed in.
template <class T>
struct WarpValues {
  const std::array<Message, 32>& messages;

  T operator[](int lane) const {
    T value;
    std::memcpy(&value, messages[lane].words.data(), sizeof value);
    return value;
  }
};

template <class T>
WarpValues<T> exchange_values(uint32_t mask, const T& value, Place here) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= sizeof(Message));
  Message message;
  std::memcpy(message.words.data(), &value, sizeof value);
  return {exchange(mask, message, here)};
}

}  // namespace dmamba::emulation

template <class T>
T __shfl_sync(uint32_t mask, T value, int lane, EmulationPlace here = DMAMBA_HERE) {
  return dmamba::emulation::exchange_values(mask, value, here)[lane % 32];
}
template <class T>
T __shfl_xor_sync(uint32_t mask, T value, int lanes, EmulationPlace here = DMAMBA_HERE) {
  const auto values = dmamba::emulation::exchange_values(mask, value, here);
  return values[dmamba::emulation::lane_number() ^ lanes];
}
template <class T>
T __shfl_up_sync(uint32_t mask, T value, int lanes, EmulationPlace here = DMAMBA_HERE) {
  const auto values = dmamba::emulation::exchange_values(mask, value, here);
  const int lane = dmamba::emulation::lane_number();
  return lane < lanes ? value : values[lane - lanes];
}
inline uint32_t __ballot_sync(uint32_t mask, int set, EmulationPlace here = DMAMBA_HERE) {
  const auto values = dmamba::emulation::exchange_values(mask, set, here);
  uint32_t bits = 0;
  for (int lane = 0; lane < 32; ++lane) bits |= values[lane] != 0 ? 1U << lane : 0U;
  return bits;
}
inline int __all_sync(uint32_t mask, int set, EmulationPlace here = DMAMBA_HERE) {
  return __ballot_sync(mask, set, here) == ~0U ? 1 : 0;
}
inline int __any_sync(uint32_t mask, int set, EmulationPlace here = DMAMBA_HERE) {
  return __ballot_sync(mask, set, here) != 0 ? 1 : 0;
}
inline uint32_t __reduce_add_sync(uint32_t mask, uint32_t value,
                                  EmulationPlace here = DMAMBA_HERE) {
  const auto values = dmamba::emulation::exchange_values(mask, value, here);
  uint32_t sum = 0;
  for (int lane = 0; lane < 32; ++lane) sum += values[lane];
  return sum;
}

template <class T>
T atomicAdd(T* at, T value) {
  return __atomic_fetch_add(at, value, __ATOMIC_RELAXED);
}
template <class T>
T atomicOr(T* at, T value) {
  return __atomic_fetch_or(at, value, __ATOMIC_RELAXED);
}
template <class T>
T __ldcs(const T* at) {
  return *at;
}
template <class T>
T __ldcg(const T* at) {
  return *at;
}
template <class T>
void __stwb(T* at, T value) {
  *at = value;
}

inline float __uint_as_float(uint32_t bits) { return std::bit_cast<float>(bits); }
inline uint32_t __float_as_uint(float x) { return std::bit_cast<uint32_t>(x); }
inline float __int_as_float(int bits) { return std::bit_cast<float>(bits); }
inline int __float2int_rz(float x) { return static_cast<int>(x); }
inline int __popc(uint32_t bits) { return std::popcount(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline uint32_t __byte_perm(uint32_t low, uint32_t high, uint32_t which) {
  const uint64_t bytes = uint64_t{high} << 32 | low;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    result |= static_cast<uint32_t>(bytes >> (which >> 4 * i & 7U) * 8 & 0xFFU) << 8 * i;
  }
  return result;
}

template <class A, class B>
constexpr std::common_type_t<A, B> min(A a, B b) {
  const std::common_type_t<A, B> x = a, y = b;
  return y < x ? y : x;
}
template <class A, class B>
constexpr std::common_type_t<A, B> max(A a, B b) {
  const std::common_type_t<A, B> x = a, y = b;
  return x < y ? y : x;
}
inline float rsqrtf(float x) { return 1.0F / std::sqrt(x); }
inline float normcdff(float x) { return 0.5F * std::erfc(-0.7071067811865476F * x); }
using std::isfinite;
using std::signbit;
