// Parameters of the causal depthwise convolution with SiLU, as in the Mamba block.
//
//   y_t = SiLU(bias + sum_k weight_k x_{t - (width - 1) + k}),   x_t = 0 where mask_t is false,
//
// where inputs before the sequence come from initial_state (zero without it) and inputs before a
// segment's start are zero. Free of torch and of CUDA: the CPU version shares it.
#pragma once

#include "kernels/common/types.h"

namespace dmamba::kernels {

struct CausalConv1dParams {
  int64_t batch, length, d_inner, width;
  Storage storage;
  bool silu;

  Sequence x;          // (batch, L, d_inner), storage type
  const void* weight;  // (d_inner, width), any strides; the CPU wants contiguous channels
  int64_t weight_channel_stride, weight_tap_stride;
  const void* bias;  // (d_inner,), optional
  Flags mask;
  Flags segment_starts;
  StateView initial_state;  // (batch, d_inner, width - 1), oldest first; optional
};

struct CausalConv1dForwardParams : CausalConv1dParams {
  Sequence out;          // (batch, L, d_inner)
  StateView last_state;  // the last width - 1 inputs; data may equal initial_state's; optional
};

struct CausalConv1dBackwardParams : CausalConv1dParams {
  Sequence dout;
  StateView dlast_state;  // optional
  Sequence dx;
  StateView dinitial_state;  // optional
  void* dweight_partial;     // the CPU's: (batch, width, d_inner)
  void* dbias_partial;       // the CPU's: (batch, d_inner), null without bias
};

}  // namespace dmamba::kernels
