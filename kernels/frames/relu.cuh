// ReLU as torch has it: NaN goes through, both ways.
#pragma once

#include <cuda_runtime.h>

namespace dmamba::kernels {

__device__ __forceinline__ float relu(float x) { return x < 0.0F ? 0.0F : x; }

/// The gradient behind an activation `out`, given that before it.
__device__ __forceinline__ float relu_gradient(float out, float slope) {
  return out <= 0.0F ? 0.0F : slope;
}

}  // namespace dmamba::kernels
