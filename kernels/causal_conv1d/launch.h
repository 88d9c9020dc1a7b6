// What src/ops/cuda and the benchmarks call: the causal convolution on a CUDA device. The rules of
// kernels/selective_scan/launch.h hold here too.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "kernels/causal_conv1d/params.h"

namespace dmamba::kernels {

/// Largest width of one launch.
constexpr int64_t kConvMaxWidth = 8;

/// One token (L = 1) with last_state in place is the recurrent step. last_state.data may be null.
cudaError_t launch_causal_conv1d_forward(const CausalConv1dForwardParams& p, cudaStream_t stream);

/// The summed gradients, written whole. Contiguous; dbias null without bias.
struct CausalConv1dGradients {
  float* dweight;  // (d_inner, width)
  float* dbias;    // (d_inner,)
};

/// Bytes of scratch (256-byte aligned) that the backward launch needs.
size_t causal_conv1d_backward_workspace(const CausalConv1dParams& p);

/// dinitial_state, where asked, is written whole. The *_partial fields of `p` are not read. Leaves
/// the blocks' sums for the weight's and the bias's gradients in `workspace`.
cudaError_t launch_causal_conv1d_backward(const CausalConv1dBackwardParams& p, void* workspace,
                                          cudaStream_t stream);

/// Adds those up, on whichever stream, after the launch above with the same `p`.
cudaError_t launch_causal_conv1d_backward_sums(const CausalConv1dBackwardParams& p,
                                               const CausalConv1dGradients& gradients,
                                               const void* workspace, cudaStream_t stream);

}  // namespace dmamba::kernels
