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

/// Dropout while training. The mask follows from one number a call (see ops::dropout), which comes
/// from torch's default generator, so that torch.manual_seed decides the masks, whatever the number
/// of threads; in a Trainer's step it is a function of (seed, step, number of the call).
class DropoutImpl : public torch::nn::Module {
 public:
  /// Throws ConfigError unless 0 <= p < 1.
  explicit DropoutImpl(double p);
  torch::Tensor forward(const torch::Tensor& x) { return apply(x); }
  torch::Tensor apply(const torch::Tensor& x) const;

  double p() const { return p_; }
  /// Whether anything is dropped now.
  bool active() const { return is_training() && p_ > 0.0; }

 private:
  torch::Tensor draw(const torch::Tensor& x, int64_t row, int64_t before) const;

  double p_;
};
TORCH_MODULE(Dropout);

}  // namespace dmamba::nn
