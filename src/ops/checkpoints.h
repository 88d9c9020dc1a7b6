// How often the scan's forward pass keeps h for the backward pass: the autograd layer's choice.
#pragma once

#include <ATen/core/Tensor.h>

namespace dmamba::ops {

/// Measured on the CPU (scripts/benchmark_ops.py): 32 to 128 cost the same, and 64 keeps
/// d_state / 64 floats a channel and token.
constexpr int64_t kCpuCheckpointEvery = 64;

/// What the CUDA kernels take (kernels/selective_scan/launch.h, which is CUDA's and not seen here):
/// as many bytes as two activations have.
constexpr int64_t kCudaCheckpointEvery = 8;

/// Tokens between the checkpoints of h, for a scan over activations like these.
inline int64_t checkpoint_interval(const at::Tensor& u) {
  return u.is_cuda() ? kCudaCheckpointEvery : kCpuCheckpointEvery;
}

/// Whether the backward pass of a scan with a gate (z) reads what the forward pass returned.
inline bool backward_reads_out(const at::Tensor& u, int64_t d_state) {
  return u.is_cuda() && d_state <= 128;
}

/// Type of the checkpoints that the CUDA kernels keep: the activations', but fp32 for more states
/// than one launch takes.
inline at::ScalarType cuda_checkpoint_type(at::ScalarType activations, int64_t d_state) {
  return d_state <= 128 ? activations : at::kFloat;
}

}  // namespace dmamba::ops
