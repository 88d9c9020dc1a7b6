// A layer: token mixing and channel mixing.
#include "dmamba/nn/block.h"

#include "dmamba/common/error.h"
#include "dmamba/nn/elementwise.h"
#include "src/nn/channel_mlp.h"
#include "src/nn/channel_ssm.h"
#include "src/nn/residual_stream.h"

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
  } else if (config.channel_mixing == "ssm") {
    ln_2_ = register_module("ln_2", torch::nn::LayerNorm(norm_options));
    ssm_ = register_module("ssm_channels", std::make_shared<ChannelSsmImpl>(config));
    channel_dropout_ = register_module("channel_dropout", Dropout(config.dropout));
  } else if (config.channel_mixing != "none") {
    throw ConfigError("model.channel_mixing: '" + config.channel_mixing +
                      "' is unknown; choose one of mlp, ssm, none");
  }
}

void BlockImpl::mix_channels(ResidualStream& x) {
  if (ssm_) x.add(ssm_->forward(x.norm(*ln_2_)), {}, *channel_dropout_);
  if (!mlp_) return;
  const auto &first = mlp_->at<torch::nn::LinearImpl>(0),
             &second = mlp_->at<torch::nn::LinearImpl>(2);
  const torch::Tensor none;
  const bool later = x.fused();  // the second bias joins in the stream
  const auto mixed = channel_mlp(x.norm(*ln_2_), first.weight, first.bias, second.weight,
                                 later ? none : second.bias);
  x.add(mixed, later ? second.bias : none, mlp_->at<DropoutImpl>(3));
}

void BlockImpl::forward(ResidualStream& x, const ops::TokenFlags& flags) {
  x.add(mixer_->forward(x.norm(*norm_), flags));
  mix_channels(x);
}

std::unique_ptr<MixerState> BlockImpl::initial_state(int64_t batch) const {
  return mixer_->initial_state(batch);
}

void BlockImpl::step(ResidualStream& x, const ops::TokenFlags& flags, MixerState& state) {
  x.add(mixer_->step(x.norm(*norm_), flags, state));
  mix_channels(x);
}

torch::Tensor BlockImpl::forward(const torch::Tensor& x, const ops::TokenFlags& flags) {
  ResidualStream stream(x);
  forward(stream, flags);
  return stream.value();
}

torch::Tensor BlockImpl::step(const torch::Tensor& x, const ops::TokenFlags& flags,
                              MixerState& state) {
  ResidualStream stream(x);
  step(stream, flags, state);
  return stream.value();
}

}  // namespace dmamba::nn
