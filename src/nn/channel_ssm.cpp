// Two Mamba blocks along the channels.
#include "src/nn/channel_ssm.h"

#include "dmamba/common/error.h"

namespace dmamba::nn {

ChannelSsmImpl::ChannelSsmImpl(const config::ModelConfig& config) : group_(config.channel_group) {
  if (group_ < 1 || config.d_model % group_ != 0) {
    throw ConfigError("model.channel_group: " + std::to_string(group_) +
                      " channels a step do not divide model.d_model, " +
                      std::to_string(config.d_model));
  }
  const MambaOptions options{group_, config.d_state, config.d_conv, config.expand, config.dt_rank};
  forward_ = register_module("forward_mamba", Mamba(options));
  backward_ = register_module("backward_mamba", Mamba(options));
}

torch::Tensor ChannelSsmImpl::forward(const torch::Tensor& x) {
  const torch::Tensor s = x.reshape({x.size(0) * x.size(1), x.size(2) / group_, group_});
  const torch::Tensor y = forward_->forward(s, {}) + backward_->forward(s.flip(1), {}).flip(1);
  return y.view(x.sizes());
}

}  // namespace dmamba::nn
