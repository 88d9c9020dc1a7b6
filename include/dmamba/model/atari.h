// Decision Mamba (T. Ota, arXiv 2403.19925) for games: frames in, discrete actions out.
#pragma once

#include <torch/nn.h>

#include <vector>

#include "dmamba/model/dmamba.h"
#include "dmamba/nn/frame_encoder.h"

namespace dmamba::model {

/// One step of each game, as the recurrent policy sees it.
struct AtariInput {
  torch::Tensor previous_actions;  // (batch,) int64; what was done the step before
  torch::Tensor returns_to_go;     // (batch, 1), scaled
  torch::Tensor states;            // (batch, d_model), of encode()
  torch::Tensor positions;         // (batch,) int64: steps since the segment's first
  torch::Tensor timesteps;         // (batch,) int64: of the segment's first step in its episode
  torch::Tensor starts;            // (batch,) bool: a segment starts here; no previous action
};

/// A piece of each game, in batches of K steps.
struct AtariWindow {
  torch::Tensor states;         // (batch, K, d_model), of encode()
  torch::Tensor actions;        // (batch, K) int64
  torch::Tensor returns_to_go;  // (batch, K, 1), scaled
  torch::Tensor timesteps;      // (batch,) int64, of the first real step
  torch::Tensor mask;           // (batch, K) bool, false for padding in front; or undefined
};

/// Encoder, embeddings, layers and a linear head, named as in the author's Atari code: tokens are
/// (R_1, s_1, a_1, R_2, ...), each with two embeddings of its place, and the logits of an action
/// are read off the state's token. `position: segment` adds the time of the segment's first step
/// and a learned embedding of the token's place in it; `timestep` the time of each step and one of
/// the token's kind.
class AtariDMambaImpl : public torch::nn::Module {
 public:
  /// Parameters come from torch's default generator. Throws ConfigError for sizes below 1 or an
  /// unknown choice.
  AtariDMambaImpl(int64_t num_actions, const config::ModelConfig& config);

  /// frames (batch, K, 4, 84, 84) uint8, oldest first; actions (batch, K) int64 in [0,
  /// num_actions); returns_to_go (batch, K, 1) of the parameters' dtype; timesteps (batch,) int64,
  /// of the first real step, capped at max_timestep - 1; mask (batch, K) bool or absent, false for
  /// padding, which stands in front -> logits (batch, K, num_actions). K is at most context_length
  /// with `position: segment`.
  torch::Tensor forward(const torch::Tensor& frames, const torch::Tensor& actions,
                        const torch::Tensor& returns_to_go, const torch::Tensor& timesteps,
                        const ops::OptionalTensor& mask = {});

  /// stacks (n, 4, 84, 84) uint8 -> (n, d_model), before the embeddings of place.
  torch::Tensor encode(const torch::Tensor& stacks);

  /// The same of strips (batch, 3 + K, 84, 84) uint8, see nn::FrameEncoder::forward_strips ->
  /// (batch, K, d_model).
  torch::Tensor encode_strips(const torch::Tensor& strips);

  /// The logits (batch, K, num_actions) of states that are encoded already.
  torch::Tensor forward_encoded(const AtariWindow& window);

  /// The training loss, a float32 scalar: the mean cross-entropy over real steps. strips as
  /// encode_strips() takes them; mask (batch, K) bool, or
  /// undefined: all steps are real.
  torch::Tensor loss(const torch::Tensor& strips, const torch::Tensor& actions,
                     const torch::Tensor& returns_to_go, const torch::Tensor& timesteps,
                     const torch::Tensor& mask);

  /// The state before the first step of `batch` games.
  RecurrentState initial_state(int64_t batch) const;

  /// Logits (batch, num_actions) for one step of each game; `state` moves on. No gradient.
  torch::Tensor step(const AtariInput& input, RecurrentState& state);

  /// Where `which` (batch,) bool, the state becomes that of a segment of a window's steps (no mask)
  /// up to its last state's token; the other games keep theirs. No gradient.
  void begin_with(const AtariWindow& window, const torch::Tensor& which, RecurrentState& state);

  int64_t num_actions() const { return num_actions_; }
  /// Where the parameters are.
  torch::Device device() const { return head_->weight.device(); }
  const config::ModelConfig& config() const { return config_; }

 private:
  bool counts_timesteps() const { return config_.position == "timestep"; }
  void check_inputs(const AtariWindow& window) const;
  torch::Tensor kinds(const torch::Tensor& states, const torch::Tensor& actions,
                      const torch::Tensor& returns_to_go);
  torch::Tensor places(const torch::Tensor& positions, const torch::Tensor& timesteps) const;
  bool has_fused_embedding(const AtariWindow& window) const;
  /// Tokens (batch, kinds K, d_model) and, where padding is masked, their mask (batch, kinds K).
  struct Tokens {
    torch::Tensor tokens, mask;
  };
  Tokens embed(const AtariWindow& window);
  torch::Tensor run(const AtariWindow& window);
  torch::Tensor logits(const torch::Tensor& y);

  int64_t num_actions_;
  config::ModelConfig config_;
  nn::TokenKinds kinds_;
  torch::Tensor pos_emb_;  // (1, kinds K + 1, d_model), or (1, kinds, d_model): of a token's place
  torch::Tensor global_pos_emb_;  // (1, max_timestep, d_model)
  nn::Dropout drop_{nullptr};
  std::vector<nn::Block> blocks_;
  torch::nn::LayerNorm ln_f_{nullptr};
  torch::nn::Linear head_{nullptr};
  std::shared_ptr<nn::FrameEncoder> state_encoder_;
  torch::nn::Sequential ret_emb_{nullptr}, action_embeddings_{nullptr};
};
TORCH_MODULE(AtariDMamba);

}  // namespace dmamba::model
