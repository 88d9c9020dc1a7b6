// The channel mixer Linear -> GELU -> Linear as one differentiable function.
//
// One function, because the hidden layer is the largest tensor of the model, four times as wide as
// the others: its bias, its GELU and the slope that the backward pass needs are done in one pass,
// on CUDA in bfloat16 and TF32 as a part of the product, and the biases' gradients fall out on the
// way back.
#pragma once

#include <torch/types.h>

namespace dmamba::nn {

/// x (batch, L, d_model) -> gelu(x W1^T + b1) W2^T + b2, (batch, L, d_model). weight1 (hidden,
/// d_model), bias1 (hidden,), weight2 (d_model, hidden), bias2 (d_model,). Under autocast the
/// products take its type. bias2 may be undefined: the caller adds it. Differentiable once.
torch::Tensor channel_mlp(const torch::Tensor& x, const torch::Tensor& weight1,
                          const torch::Tensor& bias1, const torch::Tensor& weight2,
                          const torch::Tensor& bias2);

}  // namespace dmamba::nn
