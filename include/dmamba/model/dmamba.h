// Decision Mamba (T. Ota, arXiv 2403.19925): predicts actions from returns-to-go, states and
// actions.
#pragma once

#include <torch/nn.h>

#include <array>
#include <initializer_list>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "dmamba/config/config.h"
#include "dmamba/nn/block.h"
#include "dmamba/nn/elementwise.h"
#include "dmamba/nn/token_kinds.h"

namespace dmamba::ops::cuda_only {
struct EmbeddingInputs;
}

namespace dmamba::model {

/// States of all layers for a batch of episodes, and nothing of the parameters.
using RecurrentState = std::vector<std::unique_ptr<nn::MixerState>>;

/// One environment step of each episode, as the recurrent policy sees it.
struct RecurrentInput {
  torch::Tensor previous_actions;  // (batch, act_dim); what was done at timestep - 1
  torch::Tensor returns_to_go;     // (batch, 1), scaled
  torch::Tensor states;            // (batch, state_dim), standardised
  torch::Tensor timesteps;         // (batch,) int64
  torch::Tensor first;             // (batch,) bool: the episode starts here; no previous action
};

/// Embeddings, layers and a tanh head, named as in the author's gym code: tokens are
/// (R_1, s_1, a_1, R_2, ...), each with the embedding of its timestep, and the action is read off
/// the state's token. With `rtg: none` or `past_actions: none` those tokens and their embedding are
/// left out; the arguments stay.
class DMambaImpl : public torch::nn::Module {
 public:
  /// Parameters come from torch's default generator. Throws ConfigError for sizes below 1 or an
  /// unknown choice.
  DMambaImpl(int64_t state_dim, int64_t act_dim, const config::ModelConfig& config);

  /// Shares all modules of `trunk` but those whose sizes follow from the data, which are its own.
  DMambaImpl(int64_t state_dim, int64_t act_dim, const DMambaImpl& trunk);

  /// Whether a child's size follows from that of states or actions: embed_state, embed_action,
  /// predict_action.
  static bool follows_from_data(const std::string& child);

  /// states (batch, K, state_dim), actions (batch, K, act_dim), returns_to_go (batch, K, 1), all of
  /// the parameters' dtype, float32 or float64 (under autocast any floating one); timesteps (batch,
  /// K) int64 in [0, max_timestep) (on CUDA those outside count as the nearest inside); mask
  /// (batch, K) bool or absent, false for padding (ignored with `padding: paper`) -> actions
  /// (batch, K, act_dim) in (-1, 1).
  torch::Tensor forward(const torch::Tensor& states, const torch::Tensor& actions,
                        const torch::Tensor& returns_to_go, const torch::Tensor& timesteps,
                        const ops::OptionalTensor& mask = {});

  /// The training loss, a float32 scalar: the mean over real steps and components of the squared
  /// error of the predicted actions. Arguments as forward's; the mask is required, and false steps
  /// do not count whatever the padding.
  torch::Tensor loss(const torch::Tensor& states, const torch::Tensor& actions,
                     const torch::Tensor& returns_to_go, const torch::Tensor& timesteps,
                     const torch::Tensor& mask);

  RecurrentState initial_state(int64_t batch) const;

  /// Actions (batch, act_dim) for one environment step of each episode; `state` moves on. No
  /// gradient.
  torch::Tensor step(const RecurrentInput& input, RecurrentState& state);

  int64_t state_dim() const { return state_dim_; }
  int64_t act_dim() const { return act_dim_; }
  /// Where the parameters are.
  torch::Device device() const { return embed_state_->weight.device(); }
  const config::ModelConfig& config() const { return config_; }

 private:
  void check_parameters() const;
  void check_dtypes(const torch::Tensor& states, const torch::Tensor& actions,
                    const torch::Tensor& returns_to_go) const;
  void check_inputs(const torch::Tensor& states, const torch::Tensor& actions,
                    const torch::Tensor& returns_to_go, const torch::Tensor& timesteps,
                    const ops::OptionalTensor& mask) const;
  void check_devices(
      std::initializer_list<std::pair<const char*, const torch::Tensor*>> tensors) const;
  bool has_fused_steps() const;
  /// Parameters of the embedding for tokens of these kinds, in their order.
  ops::cuda_only::EmbeddingInputs fused_embedding(
      const std::array<torch::nn::Linear, 3>& kinds) const;
  torch::Tensor embed_step(const RecurrentInput& input);
  torch::Tensor embed_tokens(const torch::Tensor& tokens);
  /// Tokens (batch, kinds K, d_model); where there is a mask, theirs (batch, kinds K); where one
  /// launch did that too, the first layer's norm of them.
  struct Window {
    torch::Tensor tokens, mask, normed;
  };
  Window embed_window(const torch::Tensor& states, const torch::Tensor& actions,
                      const torch::Tensor& returns_to_go, const torch::Tensor& timesteps,
                      const torch::Tensor& mask);
  torch::Tensor run_window(const torch::Tensor& states, const torch::Tensor& actions,
                           const torch::Tensor& returns_to_go, const torch::Tensor& timesteps,
                           const ops::OptionalTensor& mask);

  int64_t state_dim_, act_dim_;
  config::ModelConfig config_;
  nn::TokenKinds kinds_;
  torch::nn::Embedding embed_timestep_{nullptr};
  torch::nn::Linear embed_return_{nullptr}, embed_state_{nullptr}, embed_action_{nullptr};
  torch::nn::LayerNorm embed_ln_{nullptr}, ln_f_{nullptr};
  std::vector<nn::Block> blocks_;
  nn::Dropout embedding_dropout_{nullptr};
  torch::nn::Sequential predict_action_{nullptr};
};
TORCH_MODULE(DMamba);

}  // namespace dmamba::model
