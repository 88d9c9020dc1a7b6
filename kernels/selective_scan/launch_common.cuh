// Host side: from run-time sizes to the compiled shapes.
#pragma once

#include <cstdint>

#include "kernels/common/alignment.h"
#include "kernels/selective_scan/launch.h"
#include "kernels/selective_scan/tile.cuh"

namespace dmamba::kernels {

/// Whether A is row-major and aligned.
inline bool rows_of_A_aligned(const SelectiveScanParams& p) {
  return p.d_state % 4 == 0 && p.A_state_stride == 1 && p.A_channel_stride == p.d_state &&
         aligned(p.A, 16);
}

/// Calls f(ScanShape<lanes, kPerLane>{}) with the fewest lanes that hold d_state states.
template <int kPerLane, class F>
cudaError_t with_shape(int64_t d_state, F&& f) {
  if (d_state <= 8) return f(ScanShape<2, kPerLane>{});
  if (d_state <= 16) return f(ScanShape<4, kPerLane>{});
  if (d_state <= 32) return f(ScanShape<8, kPerLane>{});
  if (d_state <= 64) return f(ScanShape<16, kPerLane>{});
  if (d_state <= kScanMaxStates) return f(ScanShape<32, kPerLane>{});
  return cudaErrorInvalidValue;
}

inline int64_t chunks_of(const SelectiveScanParams& p, const SelectiveScanPlan& plan) {
  return (p.length + plan.chunk_length - 1) / plan.chunk_length;
}

/// Floats of one (batch, n_chunks, d_inner, d_state) array, rounded up to 256 bytes.
inline int64_t carry_floats(const SelectiveScanParams& p, int64_t n_chunks) {
  return (p.batch * n_chunks * p.d_inner * p.d_state + 63) / 64 * 64;
}

/// Tokens, channels and a sequence's states are counted in 32 bits.
inline bool indices_fit(const SelectiveScanParams& p) {
  constexpr int64_t kLimit = int64_t{1} << 30;
  return p.length * p.d_state < kLimit && p.d_inner < kLimit;
}

inline bool checkpoints_are_valid(int64_t every) { return every == 8 || every == 16; }

inline bool plan_is_valid(const SelectiveScanPlan& plan) {
  return (plan.channels_per_lane == 1 || plan.channels_per_lane == 2 ||
          plan.channels_per_lane == 4) &&
         plan.chunk_length > 0 && plan.chunk_length % kScanChunkMultiple == 0;
}

/// Launches `kernel` with `bytes` of shared memory, beyond 48 KiB too.
template <class... Args>
cudaError_t launch(void (*kernel)(Args...), int64_t blocks, int threads, size_t bytes,
                   cudaStream_t stream, const Args&... args) {
  if (bytes > 48 * 1024) {
    const cudaError_t error =
        cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                             cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
    if (error != cudaSuccess) return error;
  }
  kernel<<<static_cast<unsigned>(blocks), threads, bytes, stream>>>(args...);
  return cudaGetLastError();
}

}  // namespace dmamba::kernels
