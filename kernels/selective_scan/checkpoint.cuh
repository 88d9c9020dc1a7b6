// How four states lie in a checkpoint. fp32 keeps them as they are. With bf16 activations they have
// 16 bits each: half precision where it is as exact as bfloat16 for all four, and mostly 8 times as
// exact, else bfloat16; the last bit of the first says which. (What the gradients of dt, A and the
// biases sum up cancels: with bfloat16 alone they had errors of 1e-2.)
#pragma once

#include <cuda_fp16.h>

#include "kernels/common/storage.cuh"

namespace dmamba::kernels {

template <class T>
struct KeptStates;

template <>
struct KeptStates<float> : Pack<float, 4> {};

template <>
struct KeptStates<bfloat16> {
  Pack<bfloat16, 4> bits;

  __device__ __forceinline__ void set(const float (&h)[4]) {
    constexpr float kSmallest = 1.0F / 131072, kLargest = 32768;
    const float size[4] = {fabsf(h[0]), fabsf(h[1]), fabsf(h[2]), fabsf(h[3])};
    const float smallest = fminf(fminf(size[0], size[1]), fminf(size[2], size[3]));
    const float largest = fmaxf(fmaxf(size[0], size[1]), fmaxf(size[2], size[3]));
    const bool half = smallest >= kSmallest && largest < kLargest;
    bits.set(h);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const __half2 two = __floats2half2_rn(h[2 * i], h[2 * i + 1]);
      bits.v[i] = half ? reinterpret_cast<const uint32_t&>(two) : bits.v[i];
    }
    bits.v[0] = (bits.v[0] & ~1U) | (half ? 1U : 0U);
  }
  __device__ __forceinline__ void get(float (&h)[4]) const {
    const bool half = (bits.v[0] & 1U) != 0;
    bits.get(h);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float2 two = __half22float2(reinterpret_cast<const __half2&>(bits.v[i]));
      h[2 * i] = half ? two.x : h[2 * i];
      h[2 * i + 1] = half ? two.y : h[2 * i + 1];
    }
  }
};

/// Stores the first `count` of four states; `vector`: memory allows one access.
template <class T>
__device__ __forceinline__ void keep_states(T* to, const float (&h)[4], int count, bool vector) {
  KeptStates<T> kept;
  kept.set(h);
  if (vector) {
    if (count > 0) *reinterpret_cast<KeptStates<T>*>(to) = kept;
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i < count) to[i] = reinterpret_cast<const T*>(&kept)[i];
    }
  }
}

}  // namespace dmamba::kernels
