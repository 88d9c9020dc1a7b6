// Which episode a transition belongs to.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace dmamba::kernels {

/// The last i with starts[i] <= transition, by all threads: each round asks kThreads places at
/// once.
template <int kThreads>
__device__ int64_t find_episode(const int64_t* starts, int64_t episodes, int64_t transition) {
  int64_t low = 0, count = episodes;  // it is one of `count` from `low` on
  while (count > 1) {
    const int64_t stride = (count + kThreads - 1) / kThreads, offset = threadIdx.x * stride;
    const bool reached = offset < count && starts[low + offset] <= transition;
    const int64_t last = __syncthreads_count(reached) - 1;  // the first is always reached
    low += last * stride;
    count = min(stride, count - last * stride);
  }
  return low;
}

}  // namespace dmamba::kernels
