// In the place of kernels/common/instructions.cuh: what its instructions do.
#pragma once

#include <cuda_runtime.h>

namespace dmamba::kernels {

/// Denormals are zero.
inline float flush(float x) { return std::fabs(x) < 0x1p-126F ? std::copysign(0.0F, x) : x; }
inline float exp2_fast(float x) { return flush(std::exp2(flush(x))); }
constexpr float kExp2Shift = 0.0F;  // as these are rounded
inline float reciprocal_fast(float x) { return flush(1.0F / flush(x)); }
inline void fetch_line(const void*) {}
inline void let_next_come() {}
inline void wait_for_stream() {}

template <int kBarrier>
void wait_for_threads(int threads, EmulationPlace here = DMAMBA_HERE) {
  emulation::wait_for_some(kBarrier, threads, here);
}
template <class T, int kAlignment = 16>
T* dynamic_shared() {
  return reinterpret_cast<T*>(emulation::shared_memory());
}

}  // namespace dmamba::kernels
