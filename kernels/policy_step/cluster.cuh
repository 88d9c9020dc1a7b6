// What the policy's step needs of compute capability 9.0: copies in bulk and stores into other
// blocks of the cluster, both counted by a barrier in the memory that they reach.
//
// Nothing else orders the blocks. A release to the cluster would wait until everything that was
// written to global memory is there, about a microsecond each time.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/common/copy.cuh"

namespace dmamba::kernels {

/// For one thread; others may use the barrier after the block's next one.
__device__ __forceinline__ void init_barrier(uint64_t* barrier) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(barrier)) : "memory");
}

__device__ __forceinline__ void publish_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async;" ::: "memory");
}

/// One thread: the barrier's next phase ends when so many bytes have come, even if some came
/// before.
__device__ __forceinline__ void expect_bytes(uint64_t* barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;"
               :
               : "r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}

/// One thread: copies `floats` (a multiple of 4) from 16 bytes to 16 bytes; the barrier's next
/// phase ends with the last of them.
__device__ __forceinline__ void copy_in_bulk(float* to, const float* from, int floats,
                                             uint64_t* barrier) {
  expect_bytes(barrier, 4 * floats);
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
      :
      : "r"(shared_address(to)), "l"(__cvta_generic_to_global(from)), "r"(4 * floats),
        "r"(shared_address(barrier))
      : "memory");
}

/// Waits for the end of the phase of that parity.
__device__ __forceinline__ void wait_for_phase(uint64_t* barrier, uint32_t parity) {
  uint32_t done = 0;
  while (done == 0) {
    asm volatile(
        "{\n.reg .pred done;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2;\n"
        "selp.u32 %0, 1, 0, done;\n}"
        : "=r"(done)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
  }
}

/// The place that `here` has in this block, in block `rank`.
__device__ __forceinline__ uint32_t place_in(int rank, const void* here) {
  uint32_t there;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
               : "=r"(there)
               : "r"(shared_address(here)), "r"(rank));
  return there;
}

/// Stores into block `rank` at the place of `here`, counted by its barrier at the place of
/// `barrier`.
__device__ __forceinline__ void send(int rank, const float* here, float4 value,
                                     const uint64_t* barrier) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, "
      "[%5];"
      :
      : "r"(place_in(rank, here)), "f"(value.x), "f"(value.y), "f"(value.z), "f"(value.w),
        "r"(place_in(rank, barrier))
      : "memory");
}

/// All blocks of the cluster have begun and may be sent to. Orders nothing but barriers that were
/// published.
__device__ __forceinline__ void meet_cluster() {
  __syncwarp();
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

__device__ __forceinline__ int cluster_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return static_cast<int>(rank);
}

}  // namespace dmamba::kernels
