// Types shared by the CPU and the CUDA kernels. Free of torch and of CUDA.
#pragma once

#include <cstdint>

namespace dmamba::kernels {

/// Storage types of activations. Arithmetic is fp32 for kFloat32 and kBFloat16, fp64 for kFloat64.
enum class Storage { kFloat32, kBFloat16, kFloat64 };

/// Ten times the compute capability whose own instructions some kernels are made of: they work
/// there and nowhere else.
constexpr int kHopperArchitecture = 90;

/// A bfloat16 as it lies in memory: the upper half of a float.
struct BFloat16 {
  uint16_t bits;
};

/// A tensor (batch, L, channels) whose channels are contiguous; strides in elements.
struct Sequence {
  void* data = nullptr;
  int64_t batch_stride = 0;
  int64_t step_stride = 0;
};

/// A state (batch, d_inner, width), any strides, in elements; fp32 (fp64 with fp64 activations).
struct StateView {
  void* data = nullptr;
  int64_t batch_stride = 0;
  int64_t channel_stride = 0;
  int64_t width_stride = 0;
};

/// One flag a token, (batch, L), contiguous; data == nullptr means that the flag is absent.
struct Flags {
  const bool* data = nullptr;
};

}  // namespace dmamba::kernels
