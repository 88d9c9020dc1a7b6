// Channel mixing by a selective state space model: the layer's second mixer as the summary of
// Decision Mamba (arXiv 2403.19925) describes it, where the author's code has an MLP.
#pragma once

#include "dmamba/config/config.h"
#include "dmamba/nn/mamba.h"

namespace dmamba::nn {

/// The channels of a token are a sequence of d_model / group steps of `group` channels, which a
/// Mamba block of that width walks from the first to the last, and another back:
///   y = forward(s) + reverse(backward(reverse(s))),   s (batch L, d_model / group, group)
/// Both ways, since channels have no direction; token by token, so nothing of later tokens leaks.
class ChannelSsmImpl : public torch::nn::Module {
 public:
  /// Throws ConfigError unless model.channel_group divides d_model.
  explicit ChannelSsmImpl(const config::ModelConfig& config);

  /// (batch, L, d_model) -> (batch, L, d_model).
  torch::Tensor forward(const torch::Tensor& x);

 private:
  int64_t group_;
  Mamba forward_{nullptr}, backward_{nullptr};
};
TORCH_MODULE(ChannelSsm);

}  // namespace dmamba::nn
