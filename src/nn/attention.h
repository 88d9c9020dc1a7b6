// Causal self-attention, the token mixer of the Decision Transformer (Chen et al., arXiv
// 2106.01345).
#pragma once

#include "dmamba/nn/elementwise.h"
#include "dmamba/nn/token_mixer.h"

namespace dmamba::nn {

/// Keys and values of the last `capacity` tokens, (batch, capacity, d_model), in slots that are
/// taken in turn.
class AttentionState final : public MixerState {
 public:
  AttentionState(int64_t batch, int64_t capacity, int64_t d_model,
                 const torch::TensorOptions& options);
  void take(const torch::Tensor& which, const MixerState& other) override;

  torch::Tensor keys, values;
  torch::Tensor segments;  // (batch, capacity) int64: which segment a slot's token is of; -1: none
  torch::Tensor next;      // (batch,) int64: the slot of the next token
  torch::Tensor segment;   // (batch,) int64: the last token's
};

///   q, k, v = split(c_attn(x));  y_t = sum over s <= t of softmax_s(q_t k_s / sqrt(d / n_head))
///   v_s c_proj(y), then dropout
/// A masked token is seen by none but itself, a segment's tokens see that segment alone. In
/// recurrent inference a token sees the last `capacity` ones, 3 K with all kinds of token: what the
/// windowed policy's newest layer sees, so that both agree until an episode is longer than K; later
/// the older keys come from layers that saw what has left the window. Without positions: the
/// embedding of timesteps is the models' matter. Attention weights are not dropped out.
class AttentionImpl : public TokenMixer {
 public:
  /// Throws ConfigError unless n_head divides d_model.
  explicit AttentionImpl(const config::ModelConfig& config);

  torch::Tensor forward(const torch::Tensor& x, const ops::TokenFlags& flags) override;
  std::unique_ptr<MixerState> initial_state(int64_t batch) const override;
  torch::Tensor step(const torch::Tensor& x, const ops::TokenFlags& flags,
                     MixerState& state) override;

 private:
  torch::Tensor heads(const torch::Tensor& x) const;
  torch::Tensor attend(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                       const torch::Tensor& visible);
  torch::Tensor step_within(const torch::Tensor& x, const ops::TokenFlags& flags,
                            AttentionState& state);

  int64_t d_model_, n_head_, capacity_;
  torch::nn::Linear c_attn_{nullptr}, c_proj_{nullptr};
  Dropout resid_dropout_{nullptr};
};

}  // namespace dmamba::nn
