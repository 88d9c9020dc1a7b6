// Parameters of the token embedding of games. Free of torch and of CUDA.
#pragma once

#include "kernels/normalization/params.h"

namespace dmamba::kernels {

/// The tokens (batch, K, 3, width) of K steps of `batch` segments; everything float32, contiguous:
///
///   token = (tanh(return weight + bias), state, tanh(table[action])) + global[first timestep] +
///           local[3 position + kind];   out = dropout(token)
///
/// A step's position counts from the segment's first real step; padding stands in front.
struct GameTokens {
  int64_t batch, steps, width;  // steps = K
  const float* returns_to_go;   // (batch, K)
  const float* states;          // (batch, K, width)
  const int64_t* actions;       // (batch, K); outside [0, num_actions) the nearest inside
  const int64_t* timesteps;     // (batch,); outside [0, max_timestep) the nearest inside
  const bool* mask;             // (batch, K) or null
  const float* return_weight;   // (width,)
  const float* return_bias;     // (width,)
  const float* action_table;    // (num_actions, width)
  const float* local;           // (at least 3 K, width)
  const float* global;          // (max_timestep, width)
  int64_t num_actions, max_timestep;
  DropoutMask dropout;
};

struct GameEmbeddingParams {
  GameTokens tokens;
  float* out;        // (batch, 3 K, width)
  bool* token_mask;  // (batch, 3 K): a step's mask for each of its tokens; where there is one
};

/// Row blocks of the sums over steps.
constexpr int64_t kGameSteps = 16;
constexpr int64_t game_blocks(int64_t batch, int64_t steps) {
  return (batch * steps + kGameSteps - 1) / kGameSteps;
}
/// What the kernels take: rows of whole packs in one turn of a block, tables that fit its memory.
constexpr bool game_sizes_fit(int64_t width, int64_t num_actions) {
  return norm_width_fits(width) && width <= 512 && (num_actions + 2) * width <= 12 * 1024;
}

struct GameEmbeddingGradients {
  GameTokens tokens;
  const float* dout;  // (batch, 3 K, width)
  float* dtokens;     // (batch, 3 K, width): dout behind the dropout; may be dout without one
  float* dstates;     // (batch, K, width)
  /// (game_blocks, num_actions + 2, width): the table, the returns' weight, their bias; to be added
  /// up.
  float* parts;
  float* dlocal;   // (local_rows, width), written whole
  float* dglobal;  // (max_timestep, width), zero before
  int64_t local_rows;
};

}  // namespace dmamba::kernels
