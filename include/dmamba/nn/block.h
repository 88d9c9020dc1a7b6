// A layer of Decision Mamba: token mixing, then channel mixing, each pre-norm and residual.
#pragma once

#include "dmamba/nn/token_mixer.h"

namespace dmamba::nn {

/// Linear(d, 4 d) -> GELU -> Linear(4 d, d) -> Dropout, named as in the author's code.
torch::nn::Sequential make_channel_mlp(int64_t d_model, double dropout);

///   x = x + mixer(LayerNorm(x));  x = x + mlp(LayerNorm(x))   (the second unless channel_mixing is
/// none). Submodules: norm_<mixer>, <mixer>, ln_2, mlp_channels; with mamba these are the names in
/// the author's checkpoints.
class BlockImpl : public torch::nn::Module {
 public:
  BlockImpl(const std::string& mixer, const config::ModelConfig& config);

  /// (batch, L, d_model) -> (batch, L, d_model).
  torch::Tensor forward(torch::Tensor x, const ops::TokenFlags& flags);
  std::unique_ptr<MixerState> initial_state(int64_t batch) const;
  torch::Tensor step(torch::Tensor x, const ops::TokenFlags& flags, MixerState& state);

 private:
  torch::Tensor mix_channels(const torch::Tensor& x);

  std::shared_ptr<TokenMixer> mixer_;
  torch::nn::LayerNorm norm_{nullptr}, ln_2_{nullptr};
  torch::nn::Sequential mlp_{nullptr};
};
TORCH_MODULE(Block);

}  // namespace dmamba::nn
