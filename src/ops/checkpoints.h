// How often the scan's forward pass keeps h for the backward pass: the autograd layer's choice.
#pragma once

#include <ATen/core/Tensor.h>

namespace dmamba::ops {

/// Measured on the CPU (scripts/benchmark_ops.py): 32 to 128 cost the same, and 64 keeps
/// d_state / 64 floats a channel and token.
constexpr int64_t kCpuCheckpointEvery = 64;

/// What the CUDA kernels take (kernels/selective_scan/launch.h, which is CUDA's and not seen here):
/// as many bytes as two activations have.
constexpr int64_t cuda_checkpoint_every(at::ScalarType activations) {
  return activations == at::kBFloat16 ? 16 : 8;
}

/// Tokens between the checkpoints of h, for a scan over activations like these.
inline int64_t checkpoint_interval(const at::Tensor& u) {
  return u.is_cuda() ? cuda_checkpoint_every(u.scalar_type()) : kCpuCheckpointEvery;
}

}  // namespace dmamba::ops
