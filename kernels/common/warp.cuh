// Reductions inside a warp, each in a fixed order.
#pragma once

#include <cuda_runtime.h>

namespace dmamba::kernels {

/// The sum over the warp, in every lane.
__device__ __forceinline__ float sum_warp(float value) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) value += __shfl_xor_sync(~0U, value, lanes);
  return value;
}

/// The sums of several values, which need not wait for one another.
template <int kCount>
__device__ __forceinline__ void sum_warp(float (&values)[kCount]) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) values[i] += __shfl_xor_sync(~0U, values[i], lanes);
  }
}

/// Sums v over kLanes lanes (a power of two) that lie kStride apart, and leaves the sums spread
/// over those lanes: a lane ends with the kLeft / kLanes sums (at least one) from the returned
/// index on, in v[0...]. With fewer values than lanes several lanes hold the same sum.
///
/// Each round halves what is left: a lane sends one half to its partner and keeps the other, so
/// kLeft - 1 shuffles do the work of kLeft log2(kLanes).
template <int kLanes, int kStride, int kLeft, int kCount>
__device__ __forceinline__ int reduce_scatter(float (&v)[kCount], int lane) {
  if constexpr (kLanes == 1) {
    return 0;
  } else if constexpr (kLeft > 1) {
    constexpr int kHalf = kLeft / 2;
    const bool upper = (lane & (kStride * kLanes / 2)) != 0;
#pragma unroll
    for (int i = 0; i < kHalf; ++i) {
      const float sent = upper ? v[i] : v[i + kHalf];
      const float kept = upper ? v[i + kHalf] : v[i];
      v[i] = kept + __shfl_xor_sync(~0U, sent, kStride * kLanes / 2);
    }
    return (upper ? kHalf : 0) + reduce_scatter<kLanes / 2, kStride, kHalf>(v, lane);
  } else {
    v[0] += __shfl_xor_sync(~0U, v[0], kStride * kLanes / 2);
    return reduce_scatter<kLanes / 2, kStride, 1>(v, lane);
  }
}

}  // namespace dmamba::kernels
