// The selective scan on CUDA as functions that fill given tensors; the registered ops, and the sum
// over groups of states, are made of them.
#pragma once

#include <ATen/core/Tensor.h>

#include "kernels/selective_scan/launch.h"
#include "src/ops/checks.h"

namespace dmamba::ops::cuda {

/// The inputs of a scan, as the schemas name them.
struct ScanInputs {
  at::Tensor u, delta, A, B, C;
  OptionalTensor D, z, delta_bias;
  bool delta_softplus;
  OptionalTensor mask, segment_starts, initial_state;

  int64_t d_state() const { return A.size(1); }
};

/// What a forward pass fills. out: (batch, L, d_inner), channels contiguous; last_state: any
/// strides, may be initial_state itself; checkpoints: contiguous, of checkpoint_numel numbers.
struct ScanOutputs {
  at::Tensor out, last_state, checkpoints;
};

/// What a forward pass leaves for the backward pass; `out` is read where z is given.
struct ScanKept {
  at::Tensor checkpoints;
  int64_t checkpoint_every;
  OptionalTensor out;
};

/// What a backward pass fills. du, ddelta, dz, dB, dC: last axis contiguous; dinitial_state: any
/// strides; the others contiguous. Undefined where the input was absent.
struct ScanGradients {
  at::Tensor du, ddelta, dA, dB, dC, dD, dz, ddelta_bias, dinitial_state;
};

/// Numbers that the checkpoints of a scan hold.
inline int64_t checkpoint_numel(const ScanInputs& in, int64_t d_state, int64_t checkpoint_every) {
  if (checkpoint_every == 0) return 0;
  return in.u.size(0) * ((in.u.size(1) - 1) / checkpoint_every) * d_state * in.u.size(2);
}

/// One launch: d_state up to kScanMaxStates. `op` opens the messages of errors.
void scan_forward(const char* op, const ScanInputs& in, const ScanOutputs& out,
                  int64_t checkpoint_every);
void scan_backward(const char* op, const ScanInputs& in, const at::Tensor& dout,
                   const OptionalTensor& dlast_state, const ScanKept& kept,
                   const ScanGradients& gradients);

/// The same for more states than one launch takes (wide_scan.cpp).
void wide_scan_forward(const char* op, const ScanInputs& in, const ScanOutputs& out,
                       int64_t checkpoint_every);
void wide_scan_backward(const char* op, const ScanInputs& in, const at::Tensor& dout,
                        const OptionalTensor& dlast_state, const ScanKept& kept,
                        const ScanGradients& gradients);

/// The measured rule's plan, where set_cuda_scan_plan forces no other (scan_plan.cpp).
kernels::SelectiveScanPlan scan_plan(const kernels::SelectiveScanParams& p, int multiprocessors);

}  // namespace dmamba::ops::cuda
