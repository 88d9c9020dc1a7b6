// A layer: token mixing and channel mixing.
#include "dmamba/nn/block.h"

#include "dmamba/common/error.h"
#include "dmamba/nn/elementwise.h"
#include "src/nn/channel_mlp.h"

namespace dmamba::nn {

torch::nn::Sequential make_channel_mlp(int64_t d_model, double dropout) {
  return torch::nn::Sequential(torch::nn::Linear(d_model, 4 * d_model), Gelu(),
                               torch::nn::Linear(4 * d_model, d_model), Dropout(dropout));
}

BlockImpl::BlockImpl(const std::string& mixer, const config::ModelConfig& config) {
  const torch::nn::LayerNormOptions norm_options({config.d_model});
  norm_ = register_module("norm_" + mixer, torch::nn::LayerNorm(norm_options));
  mixer_ = register_module(mixer, make_token_mixer(mixer, config));
  if (config.channel_mixing == "mlp") {
    ln_2_ = register_module("ln_2", torch::nn::LayerNorm(norm_options));
    mlp_ = register_module("mlp_channels", make_channel_mlp(config.d_model, config.dropout));
  } else if (config.channel_mixing != "none") {
    throw ConfigError("model.channel_mixing: '" + config.channel_mixing +
                      "' is unknown; choose one of mlp, none");
  }
}

torch::Tensor BlockImpl::mix_channels(const torch::Tensor& x) {
  if (!mlp_) return x;
  const auto &first = mlp_->at<torch::nn::LinearImpl>(0),
             &second = mlp_->at<torch::nn::LinearImpl>(2);
  const auto mixed = channel_mlp(ln_2_(x), first.weight, first.bias, second.weight, second.bias);
  return x + mlp_->at<DropoutImpl>(3).forward(mixed);
}

torch::Tensor BlockImpl::forward(torch::Tensor x, const ops::TokenFlags& flags) {
  return mix_channels(x + mixer_->forward(norm_(x), flags));
}

std::unique_ptr<MixerState> BlockImpl::initial_state(int64_t batch) const {
  return mixer_->initial_state(batch);
}

torch::Tensor BlockImpl::step(torch::Tensor x, const ops::TokenFlags& flags, MixerState& state) {
  return mix_channels(x + mixer_->step(norm_(x), flags, state));
}

}  // namespace dmamba::nn
