// What lies between the scans of two layers, for all tokens at once, as one differentiable
// function: out_proj, the channel mixer with its norm, the next layer's norm and in_proj. On CUDA
// one launch each way; src/nn/layer_stack.h says when.
#pragma once

#include <torch/types.h>

#include "src/ops/cuda_only.h"

namespace dmamba::nn {

struct ChainedTokens {
  torch::Tensor x;     // (batch, L, d_model) float32: the residual stream after the layer
  torch::Tensor next;  // bfloat16: in_proj's output, or the second norm's without an in_proj
};

/// `in` with matrices as they stand in the layers, float32: their mirrors are taken where there are
/// any. Differentiable once in y, residual and the parameters.
ChainedTokens token_chain(const ops::cuda_only::TokenChainInputs& in);

}  // namespace dmamba::nn
