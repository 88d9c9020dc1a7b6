// The action head with its loss as one differentiable function on CUDA.
#pragma once

#include <torch/types.h>

namespace dmamba::nn {

/// The mean over real steps and components of (tanh(W y + b) - target)^2, a scalar, for the state's
/// token of each step: y (batch, 3 K, d_model), weight (act_dim, d_model), bias (act_dim,),
/// targets (batch, K, act_dim), mask (batch, K) bool. Differentiable once in y, weight and bias; on
/// CUDA alone, for widths that ops::cuda_only::norm_width_fits.
torch::Tensor action_loss(const torch::Tensor& y, const torch::Tensor& weight,
                          const torch::Tensor& bias, const torch::Tensor& targets,
                          const torch::Tensor& mask);

/// The same of actions that are predicted already, (batch, K, act_dim), on any device, of ATen's
/// operators.
torch::Tensor action_error(const torch::Tensor& predicted, const torch::Tensor& targets,
                           const torch::Tensor& mask);

}  // namespace dmamba::nn
