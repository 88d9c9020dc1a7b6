// The token mixer: what mixes information along the sequence inside a layer. A seam: mamba,
// attention, convolution and s4d stand behind it, others join by a row in src/nn/token_mixer.cpp.
#pragma once

#include <torch/nn.h>

#include <memory>
#include <string>
#include <vector>

#include "dmamba/config/config.h"
#include "dmamba/ops/ops.h"

namespace dmamba::nn {

/// What a mixer carries from token to token in recurrent inference, for a batch of sequences.
class MixerState {
 public:
  virtual ~MixerState() = default;

  /// Takes over the sequences of `other` where `which` (batch,) bool, in the memory that it has.
  virtual void take(const torch::Tensor& which, const MixerState& other) = 0;
};

/// Mixes tokens (batch, L, d_model) -> (batch, L, d_model), causally: token t sees tokens <= t.
class TokenMixer : public torch::nn::Module {
 public:
  using Module::Module;

  /// The whole sequence at once; differentiable.
  virtual torch::Tensor forward(const torch::Tensor& x, const ops::TokenFlags& flags) = 0;

  /// A state before the first token, for `batch` sequences. Holds no reference to the parameters.
  virtual std::unique_ptr<MixerState> initial_state(int64_t batch) const = 0;

  /// The next n tokens (batch, n, d_model) of each sequence; `state` moves on, on CUDA in the
  /// memory that it has, so that a step can be recorded and replayed. No gradient. A masked token
  /// counts as in forward(), a segment's start begins the sequence anew.
  virtual torch::Tensor step(const torch::Tensor& x, const ops::TokenFlags& flags,
                             MixerState& state) = 0;
};

/// The mixer of this name. Throws ConfigError naming the mixers there are.
std::shared_ptr<TokenMixer> make_token_mixer(const std::string& name,
                                             const config::ModelConfig& config);

/// The names that make_token_mixer knows.
std::vector<std::string> token_mixer_names();

}  // namespace dmamba::nn
