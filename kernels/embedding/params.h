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

/// The norm that comes next, the first layer's: normed = LayerNorm(out), of `storage` (float32 or
/// bfloat16).
struct NextNorm {
  const float* weight;  // (width,); null: there is none here
  const float* bias;
  float epsilon;
  Storage storage;
  void* normed;       // (steps, 3, width)
  float* statistics;  // (3 steps, 2)
};

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
  NextNorm next;
};

/// The gradients of the tokens, given that of `out` and, where there is a next norm, of `normed`.
struct EmbeddingNormParams {
  int64_t steps, width;
  const float* dout;  // null: zero
  const float* tokens;
  const float* statistics;
  const float* weight;
  const float* bias;
  DropoutMask dropout;
  NextNorm next;        // weight, statistics, and the gradient's storage
  const void* dnormed;  // where there is a next norm
  float* dtokens;
  float* dsteps;  // (steps, width): a step's tokens added up
  /// (embedding_norm_blocks, 2, width) sums for weight and bias, or 4 with those of the next norm.
  float* parts;
  int* tickets;  // (n_tickets,) is zeroed: embedding_tickets()
  int64_t n_tickets;
};

/// The gradients of the linear layers and of the table:
///
///   dlinear = (sum of (features + 1) width,), kind by kind, each kind's weight (width, features)
///             and then its bias (width,)
///   dtime[t] = sum of dsteps with that timestep
struct EmbeddingGradientParams {
  int64_t steps, width, max_timestep;
  TokenKind kinds[kTokenKinds];  // values and features
  const int64_t* timesteps;
  const float* dtokens;
  const float* dsteps;
  float* dlinear;
  float* dtime;    // (max_timestep, width), written whole
  float* scratch;  // embedding_scratch() floats
  int* tickets;    // embedding_tickets(), zero
};

constexpr int kEmbeddingWarps = 8;

/// Row blocks of the norm's gradient: from sizes alone, as all orders here.
constexpr int64_t embedding_norm_blocks(int64_t steps, int64_t width) {
  const int64_t blocks = (steps + kEmbeddingWarps - 1) / kEmbeddingWarps;
  const int64_t most = width <= 256 ? 264 : 132;
  return blocks < most ? blocks : most;
}

/// A block of the linear layers' gradient: so many columns, features (the bias is the last of a
/// kind's), and steps, a slice, of which the last block to end adds up all.
constexpr int kGradientColumns = 32, kGradientFeatures = 8, kGradientSteps = 256;

constexpr int64_t embedding_slices(int64_t steps) {
  return steps <= kGradientSteps ? 1 : (steps + kGradientSteps - 1) / kGradientSteps;
}
constexpr int64_t feature_groups(int64_t features) {
  return (features + kGradientFeatures) / kGradientFeatures;  // the bias included
}

/// Column and feature blocks: a ticket each, which counts the slices that have ended.
constexpr int64_t embedding_tickets(const TokenKind (&kinds)[kTokenKinds], int64_t width) {
  int64_t groups = 0;
  for (const TokenKind& kind : kinds) groups += feature_groups(kind.features);
  return groups * (width / kGradientColumns);
}
constexpr int64_t embedding_scratch(const TokenKind (&kinds)[kTokenKinds], int64_t steps,
                                    int64_t width) {
  return embedding_slices(steps) * embedding_tickets(kinds, width) * kGradientColumns *
         kGradientFeatures;
}

}  // namespace dmamba::kernels
