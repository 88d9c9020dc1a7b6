// GELU and dropout as modules, over the library's own ops.
#pragma once

#include <torch/nn.h>

namespace dmamba::nn {

/// GELU(x) = x Phi(x), exact.
class GeluImpl : public torch::nn::Module {
 public:
  torch::Tensor forward(const torch::Tensor& x);
};
TORCH_MODULE(Gelu);

/// Dropout while training. One number a call comes from torch's default generator, the mask follows
/// from it (see ops::dropout): torch.manual_seed decides the masks, whatever the number of threads.
class DropoutImpl : public torch::nn::Module {
 public:
  /// Throws ConfigError unless 0 <= p < 1.
  explicit DropoutImpl(double p);
  torch::Tensor forward(const torch::Tensor& x);

 private:
  double p_;
};
TORCH_MODULE(Dropout);

}  // namespace dmamba::nn
