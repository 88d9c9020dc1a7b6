// What CUDA C++ has no words for: instructions by name, and memory that a launch sizes.
#pragma once

#include <cuda_runtime.h>

namespace dmamba::kernels {

/// 2^x on the special-function unit; relative error below 2^-22, denormals are zero.
__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// Added to x where many 2^x are multiplied. The unit cuts off what does not fit: between -1/4 and
/// -1/128 its results are 2.5e-8 of themselves too small on average (H200), which a product of a
/// hundred shows. This gives back half of it, and leaves 2^0 one. The scan's walks do; the policy's
/// step, whose bar is that of a layer, does not.
constexpr float kExp2Shift = 2.2e-8F;

/// 1 / x within 1 ulp; 1 / inf = 0.
__device__ __forceinline__ float reciprocal_fast(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// Asks L2 for the line of 128 bytes around `address`.
__device__ __forceinline__ void fetch_line(const void* address) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
}

/// The next kernel's blocks may come, if it is launched early. First in kernels that are not, and
/// that leave room.
__device__ __forceinline__ void let_next_come() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

/// First in every kernel that is launched early: returns when the kernels before it in the stream
/// have ended and what they wrote is to be seen. Nothing that they may write is read before it, and
/// nothing written. Then the next kernel's blocks may come.
__device__ __forceinline__ void wait_for_stream() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
  let_next_come();
}

/// Waits for so many threads, whole warps, at one of the block's barriers 1 to 15.
template <int kBarrier>
__device__ __forceinline__ void wait_for_threads(int threads) {
  asm volatile("bar.sync %0, %1;" ::"n"(kBarrier), "r"(threads) : "memory");
}

/// The block's shared memory whose size stands in the launch. One alignment a source file.
template <class T, int kAlignment = 16>
__device__ __forceinline__ T* dynamic_shared() {
  extern __shared__ __align__(kAlignment) unsigned char dynamic_shared_memory[];
  return reinterpret_cast<T*>(dynamic_shared_memory);
}

}  // namespace dmamba::kernels
