// In the place of kernels/policy_step/cluster.cuh: what the blocks of a cluster send each other
// comes when its barrier is waited for.
#pragma once

#include <cuda_runtime.h>

#include "kernels/common/copy.cuh"

namespace dmamba::kernels {

inline void init_barrier(uint64_t* barrier) { emulation::make_mbarrier(barrier, 1); }
inline void publish_barriers() {}
inline void expect_bytes(uint64_t* barrier, int bytes) { emulation::arrive_at(barrier, bytes); }

inline void copy_in_bulk(float* to, const float* from, int floats, uint64_t* barrier) {
  if (floats % 4 != 0 || reinterpret_cast<uintptr_t>(to) % 16 != 0 ||
      reinterpret_cast<uintptr_t>(from) % 16 != 0) {
    emulation::fail("a copy in bulk of %d floats that is not aligned", floats);
  }
  std::memset(to, 0xFF, 4 * floats);
  expect_bytes(barrier, 4 * floats);
  emulation::bring_bytes(barrier, 4 * floats, [=] { std::memcpy(to, from, 4 * floats); });
}

inline void wait_for_phase(uint64_t* barrier, uint32_t parity, EmulationPlace here = DMAMBA_HERE) {
  emulation::wait_for_phase_of(barrier, parity, here);
}

inline void send(int rank, const float* here, float4 value, const uint64_t* barrier) {
  auto* to = const_cast<float*>(emulation::place_in_block(rank, here));
  emulation::bring_bytes(const_cast<uint64_t*>(emulation::place_in_block(rank, barrier)),
                         sizeof value, [=] { std::memcpy(to, &value, sizeof value); });
}

inline void meet_cluster(EmulationPlace here = DMAMBA_HERE) {
  __syncwarp(~0U, here);
  emulation::wait_for_cluster(here);
}
inline int cluster_rank() { return emulation::block_rank(); }

}  // namespace dmamba::kernels
