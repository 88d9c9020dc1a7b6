// A linear layer whose weight's gradient nothing waits for.
#pragma once

#include <torch/nn.h>

namespace dmamba::nn {

/// x (batch, L, in) -> (batch, L, out) through the layer's weight (out, in), and its bias if any.
/// On CUDA the weight comes from its mirror and its gradient is computed beside the step, in
/// float32; on the CPU this is the layer's own forward. Under autocast the product takes its type.
torch::Tensor linear(torch::nn::LinearImpl& layer, const torch::Tensor& x);

}  // namespace dmamba::nn
