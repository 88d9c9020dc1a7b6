// What the model tests share: a small configuration and inputs that owe nothing to a generator.
#pragma once

#include <torch/torch.h>

#include "dmamba/model/dmamba.h"

namespace dmamba::model::testing {

inline config::ModelConfig small_config() {
  config::ModelConfig config;
  config.d_model = 16;
  config.n_layer = 2;
  config.context_length = 6;
  config.d_state = 4;
  config.max_timestep = 50;
  config.dropout = config.embedding_dropout = 0.0;
  return config;
}

/// sin(phase + 0.37 i), in the given shape.
inline torch::Tensor waves(at::IntArrayRef sizes, double phase) {
  const int64_t n = c10::multiply_integers(sizes);
  return (torch::arange(n, torch::kDouble) * 0.37 + phase).sin().to(torch::kFloat).view(sizes);
}

struct Inputs {
  torch::Tensor states, actions, returns_to_go, timesteps;
};

/// state_dim 3, act_dim 2.
inline Inputs make_inputs(int64_t batch, int64_t K) {
  return {waves({batch, K, 3}, 0.1), waves({batch, K, 2}, 0.2) * 0.8, waves({batch, K, 1}, 0.3),
          torch::arange(K).expand({batch, K}).contiguous()};
}

}  // namespace dmamba::model::testing
