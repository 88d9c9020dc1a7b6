// What a Mamba block does between its two outer projections, as one differentiable function:
//
//   x, z = split(xz);  u = SiLU(causal_conv1d(x));  dt, B, C = split(x_proj(u))
//   y = selective_scan(u, dt_proj(dt), A, B, C, D, z),  A = -exp(A_log)
//
// One function, because its backward pass writes dx beside dz and d(dt) beside dB and dC, where the
// projections' own backward passes read them; composed of single ops, autograd would copy all five
// together with `cat` and add the two parts of du in a pass of its own.
#pragma once

#include <torch/types.h>

#include "dmamba/ops/ops.h"

namespace dmamba::nn {

/// The parameters at work; float32, or float64 with float64 activations. dt_rank and d_state follow
/// from their shapes.
struct MambaInnerParameters {
  torch::Tensor conv_weight;      // (d_inner, d_conv)
  ops::OptionalTensor conv_bias;  // (d_inner,)
  torch::Tensor x_proj_weight;    // (dt_rank + 2 d_state, d_inner)
  torch::Tensor dt_proj_weight;   // (d_inner, dt_rank)
  torch::Tensor dt_proj_bias;     // (d_inner,)
  torch::Tensor A_log;            // (d_inner, d_state)
  torch::Tensor D;                // (d_inner,)
};

/// xz (batch, L, 2 d_inner) -> y (batch, L, d_inner), both of one storage type: the projections
/// inside work in it, autocast or not. Differentiable once in xz and the parameters.
torch::Tensor mamba_inner(const torch::Tensor& xz, const MambaInnerParameters& parameters,
                          const ops::TokenFlags& flags);

/// The same from the given states of convolution (batch, d_inner, d_conv - 1) and scan (batch,
/// d_inner, d_state), in whose places those after the last token are put. No gradient.
torch::Tensor mamba_inner_step(const torch::Tensor& xz, const MambaInnerParameters& parameters,
                               const ops::TokenFlags& flags, torch::Tensor& conv_state,
                               torch::Tensor& ssm_state);

}  // namespace dmamba::nn
