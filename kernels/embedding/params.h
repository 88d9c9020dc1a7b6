// Parameters of the token embedding. Free of torch and of CUDA.
#pragma once

#include "kernels/normalization/params.h"

namespace dmamba::kernels {

/// One of the three kinds of token: value (steps, features) through Linear(features, width).
struct TokenKind {
  const float* values;
  const float* weight;  // (width, features), row-major
  const float* bias;    // (width,)
  int64_t features;
  const int64_t* timesteps;  // (steps,); outside [0, max_timestep) the nearest inside
};

constexpr int kTokenKinds = 3;  // return-to-go, state, action: the order within a step

/// token = weight value + bias + time[its kind's timestep];  out = dropout(LayerNorm(token))
/// for the tokens (steps, 3, width) of `steps` environment steps. Everything float32, contiguous.
struct EmbeddingParams {
  int64_t steps, width;
  TokenKind kinds[kTokenKinds];
  const float* time;  // (max_timestep, width)
  int64_t max_timestep;
  const float* norm_weight;
  const float* norm_bias;
  float epsilon;
  DropoutMask dropout;
  const bool* mask;  // (steps,) or null
  float* tokens;
  float* statistics;  // (3 steps, 2): mean, 1 / deviation
  float* out;
  bool* token_mask;  // (steps, 3): a step's mask for each of its tokens; where there is one
};

/// The gradients of the linear layers as column sums of parts: (blocks, sum of (features + 1)
/// width), kind by kind, each kind's weight (width, features) and then its bias (width,).
struct EmbeddingWeightsParams {
  int64_t steps, width;
  TokenKind kinds[kTokenKinds];  // values and features
  const float* dtokens;          // (steps, 3, width)
  float* parts;
};

/// dtime[t] = sum of the gradients of all tokens with that timestep, in their order.
struct TimeGradientParams {
  int64_t steps, width, max_timestep;
  const int64_t* timesteps;
  const float* dtokens;
  float* dtime;  // (max_timestep, width), written whole
};

constexpr int64_t kEmbeddingSteps = 32;  // of a block of the weights' gradient

constexpr int64_t embedding_weight_blocks(int64_t steps) {
  return (steps + kEmbeddingSteps - 1) / kEmbeddingSteps;
}

}  // namespace dmamba::kernels
