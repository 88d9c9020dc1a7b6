// A thread's two channels of the convolution's usual shape, four taps: what it holds of the weight
// and of the tokens, which lie in shared memory.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/common/storage.cuh"

namespace dmamba::kernels {

constexpr int kPairTaps = 4, kPairHalo = kPairTaps - 1;

/// Two channels of a token, zero where `live` has no bits.
template <class T>
__device__ __forceinline__ void load_pair(const T* at, uint32_t live, float (&v)[2]) {
  load_pack<T, 2>(at, v);
#pragma unroll
  for (int c = 0; c < 2; ++c) v[c] = __uint_as_float(__float_as_uint(v[c]) & live);
}

/// Taps and bias of two channels.
struct PairWeights {
  float tap[2][kPairTaps], bias[2];

  __device__ __forceinline__ PairWeights(const void* taps, const void* biases, int channel) {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      load_pack<float, kPairTaps>(static_cast<const float*>(taps) + (channel + c) * kPairTaps,
                                  tap[c]);
      bias[c] = biases != nullptr ? static_cast<const float*>(biases)[channel + c] : 0.0F;
    }
  }
  /// Before SiLU; the window's inputs in their order, the present one last.
  __device__ __forceinline__ float activation(int c, const float (&window)[kPairHalo][2],
                                              float present) const {
    float a = bias[c];
#pragma unroll
    for (int k = 0; k < kPairHalo; ++k) a = fmaf(tap[c][k], window[k][c], a);
    return fmaf(tap[c][kPairHalo], present, a);
  }
};

/// The window of the next token.
__device__ __forceinline__ void move_window(float (&window)[kPairHalo][2],
                                            const float (&present)[2]) {
#pragma unroll
  for (int c = 0; c < 2; ++c) {
#pragma unroll
    for (int k = 0; k + 1 < kPairHalo; ++k) window[k][c] = window[k + 1][c];
    window[kPairHalo - 1][c] = present[c];
  }
}

}  // namespace dmamba::kernels
