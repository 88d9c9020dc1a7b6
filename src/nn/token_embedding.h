// The embedding of (return-to-go, state, action) tokens as one differentiable function on CUDA.
#pragma once

#include <torch/types.h>

#include "src/ops/cuda_only.h"

namespace dmamba::nn {

struct EmbeddedTokens {
  torch::Tensor tokens;  // (batch, 3 K, d_model) float32, after norm and dropout
  torch::Tensor mask;    // (batch, 3 K) bool where the steps have one
  torch::Tensor normed;  // (batch, 3 K, d_model): the next norm of them, where there is one
};

/// values: (batch, K, features) float32, which get no gradient; timesteps and mask (batch, K).
/// Without first_timesteps differentiable once in the parameters, those of the next norm among
/// them; on CUDA alone, for widths that ops::cuda_only::norm_width_fits.
EmbeddedTokens embed_tokens(const ops::cuda_only::EmbeddingInputs& in);

}  // namespace dmamba::nn
