// A layer of Decision Mamba: token mixing, then channel mixing, each pre-norm and residual.
#pragma once

#include "dmamba/nn/token_mixer.h"

namespace dmamba::nn {

class ResidualStream;

/// Linear(d, 4 d) -> GELU -> Linear(4 d, d) -> Dropout, named as in the author's code.
torch::nn::Sequential make_channel_mlp(int64_t d_model, double dropout);

///   x = x + mixer(LayerNorm(x));  x = x + mlp(LayerNorm(x))   (the second unless channel_mixing is
/// none). Submodules: norm_<mixer>, <mixer>, ln_2, mlp_channels; with mamba these are the names in
/// the author's checkpoints.
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

 private:
  void mix_channels(ResidualStream& x);

  std::shared_ptr<TokenMixer> mixer_;
  torch::nn::LayerNorm norm_{nullptr}, ln_2_{nullptr};
  torch::nn::Sequential mlp_{nullptr};
};
TORCH_MODULE(Block);

}  // namespace dmamba::nn
