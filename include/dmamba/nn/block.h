// A layer of Decision Mamba: token mixing, then channel mixing, each pre-norm and residual.
#pragma once

#include "dmamba/nn/elementwise.h"
#include "dmamba/nn/token_mixer.h"

namespace dmamba::nn {

class ChannelSsmImpl;
class ResidualStream;

/// Linear(d, 4 d) -> GELU -> Linear(4 d, d) -> Dropout, named as in the author's code.
torch::nn::Sequential make_channel_mlp(int64_t d_model, double dropout);

///   x = x + mixer(LayerNorm(x));  x = x + channels(LayerNorm(x)),   channels an MLP, a state space
/// model or (channel_mixing none) left out with its sum. Submodules: norm_<mixer>, <mixer>, ln_2,
/// mlp_channels (with mamba these are the names in the author's checkpoints) or ssm_channels and
/// channel_dropout.
class BlockImpl : public torch::nn::Module {
 public:
  BlockImpl(const std::string& mixer, const config::ModelConfig& config);

  /// (batch, L, d_model) -> (batch, L, d_model).
  torch::Tensor forward(const torch::Tensor& x, const ops::TokenFlags& flags);
  torch::Tensor step(const torch::Tensor& x, const ops::TokenFlags& flags, MixerState& state);

  /// The same on a stream, to which layers add one after the other.
  void forward(ResidualStream& x, const ops::TokenFlags& flags);
  std::unique_ptr<MixerState> initial_state(int64_t batch) const;
  void step(ResidualStream& x, const ops::TokenFlags& flags, MixerState& state);

  /// The submodules, for what computes several layers together; empty where there is none.
  std::shared_ptr<TokenMixer> mixer() const { return mixer_; }
  torch::nn::LayerNorm norm() const { return norm_; }
  torch::nn::LayerNorm channel_norm() const { return ln_2_; }
  torch::nn::Sequential mlp() const { return mlp_; }

 private:
  void mix_channels(ResidualStream& x);

  std::shared_ptr<TokenMixer> mixer_;
  torch::nn::LayerNorm norm_{nullptr}, ln_2_{nullptr};
  torch::nn::Sequential mlp_{nullptr};
  std::shared_ptr<ChannelSsmImpl> ssm_;
  Dropout channel_dropout_{nullptr};
};
TORCH_MODULE(Block);

}  // namespace dmamba::nn
