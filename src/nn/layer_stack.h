// The layers of a model one after the other, and the norm after the last of them.
#pragma once

#include <torch/nn.h>

#include <vector>

#include "dmamba/nn/block.h"

namespace dmamba::nn {

/// x (batch, L, d_model) through the layers, then `norm`, in the type in which matrix products take
/// it. normed: the first layer's norm of x where it is known. Where all layers fit (CUDA, bfloat16
/// products, mamba with MLP channels), what lies between their scans is one launch each way
/// (src/nn/token_chain.h); roundings are then others, dropout masks are the same.
torch::Tensor run_layers(std::vector<Block>& layers, torch::nn::LayerNormImpl& norm,
                         const torch::Tensor& x, const ops::TokenFlags& flags,
                         const torch::Tensor& normed = {});

}  // namespace dmamba::nn
