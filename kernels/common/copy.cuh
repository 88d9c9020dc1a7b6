// Copies from global to shared memory in the background, in groups (cp.async).
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace dmamba::kernels {

/// An address in shared memory as the instructions below take it.
__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

/// 16 bytes, aligned, of which the first `bytes` exist; the rest becomes zero. `from` must be an
/// address that may be read, even where nothing is.
__device__ __forceinline__ void copy_async(uint32_t at, const void* from, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from), "r"(bytes)
               : "memory");
}

__device__ __forceinline__ void copy_async(void* to, const void* from, int bytes) {
  copy_async(shared_address(to), from, bytes);
}

/// Copies kBytes (4, 8 or 16, aligned) to shared memory in the background, or zeros where not
/// `valid`. The thread that copied sees the data after wait_for_copies(), others after a barrier.
template <int kBytes>
__device__ __forceinline__ void copy_async(void* shared, const void* global, bool valid) {
  const uint32_t to = shared_address(shared);
  const int bytes = valid ? kBytes : 0;
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(global), "n"(kBytes),
               "r"(bytes)
               : "memory");
}

/// Waits for all of this thread's copies.
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_all;" ::: "memory");
}

/// Ends a group of this thread's copies.
__device__ __forceinline__ void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

/// Waits until at most `kLeft` groups of this thread are on their way.
template <int kLeft>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}

}  // namespace dmamba::kernels
