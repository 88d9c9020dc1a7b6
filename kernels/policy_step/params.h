// Parameters of the recurrent policy's step in one launch. Free of torch and of CUDA.
#pragma once

#include <cstdint>

namespace dmamba::kernels {

constexpr int kPolicyStates = 16, kPolicyTaps = 4;  // d_state and d_conv of what is compiled
constexpr int kPolicyStateRows = kPolicyTaps - 1 + kPolicyStates;
constexpr int kPolicyTokens = 3;   // of a step: what was done, return-to-go, state
constexpr int kPolicySlot = 8192;  // floats of weights that come in one copy

/// A model whose layers are all `mamba`, without biases at in_proj and out_proj.
struct PolicyStepSizes {
  int d_model, d_inner, dt_rank, n_layer;
  int hidden;  // of the channel mixer; 0: none
  int state_dim, act_dim, max_timestep;
};

/// How the environments are shared out: a cluster of `ranks` blocks for every `envs` environments.
struct PolicyStepPlan {
  int ranks, envs;
};

/// The matrices in the order in which they are read; those from kPolicyIn to kPolicyBack again for
/// every layer, the last two where there is a mixer.
enum PolicyMatrix : int {
  kPolicyEmbed,  // act_dim + 1 + state_dim inputs, a bias for each kind of token -> columns
  kPolicyIn,     // d_model -> x and then z of the channels
  kPolicyX,      // channels -> B, C, dt and nothing up to a multiple of 4
  kPolicyOut,    // channels -> d_model
  kPolicyWide,   // d_model -> units
  kPolicyBack,   // units -> d_model
  kPolicyHead,   // the other way round: (act_dim, d_model), all of it in every rank
  kPolicyMatrices
};

/// A matrix as a block reads it: inputs in rows, outputs side by side, a multiple of 4.
struct PolicyStepShape {
  int rows, cols;
  int piece;  // rows that come in one copy
};

/// The blocks of a cluster ("ranks") share the channels, the mixer's hidden units, and what is
/// left to add up of the residual stream. Each finds its parts of the weights in the order in which
/// it reads them. In floats, from the packed memory's beginning:
struct PolicyStepLayout {
  int ranks;
  int channels, units, columns;  // of a rank: of d_inner, of hidden, of d_model
  PolicyStepShape shapes[kPolicyMatrices];
  int64_t rank_stride;  // of the matrices: (ranks, rank_stride)
  int64_t layers;       // (ranks, n_layer, layer_stride): the vectors of PolicyStepVectors
  int layer_stride;
  int64_t ends;  // embed_ln's weight and bias, ln_f's, the head's bias
  int ends_size;
  int64_t size;
};

/// Where the vectors of a layer lie, in floats.
struct PolicyStepVectors {
  int norm;        // (2, d_model): weight, bias
  int conv;        // (d_conv, channels), then the bias
  int dt;          // (dt_rank, channels), then the bias
  int A;           // (d_state, channels): log2(e) A, as exp(dt A) = 2^(dt log2(e) A)
  int D;           // (channels,)
  int mixer_norm;  // (2, d_model)
  int wide_bias;   // (units,)
  int back_bias;   // (columns,)
  int size;
};

constexpr int round_up_to_4(int n) { return (n + 3) / 4 * 4; }

inline PolicyStepVectors policy_step_vectors(const PolicyStepSizes& s, int ranks) {
  const int channels = s.d_inner / ranks;
  PolicyStepVectors v{};
  const auto take = [&](int& where, int size) {
    where = v.size;
    v.size += size;
  };
  take(v.norm, 2 * s.d_model);
  take(v.conv, (kPolicyTaps + 1) * channels);
  take(v.dt, (s.dt_rank + 1) * channels);
  take(v.A, kPolicyStates * channels);
  take(v.D, channels);
  if (s.hidden > 0) {
    take(v.mixer_norm, 2 * s.d_model);
    take(v.wide_bias, s.hidden / ranks);
    take(v.back_bias, s.d_model / ranks);
  }
  return v;
}

inline PolicyStepLayout policy_step_layout(const PolicyStepSizes& s, int ranks) {
  PolicyStepLayout l{};
  l.ranks = ranks;
  l.channels = s.d_inner / ranks;
  l.units = s.hidden / ranks;
  l.columns = s.d_model / ranks;
  const auto set = [&](PolicyMatrix matrix, int rows, int cols) {
    l.shapes[matrix] = {rows, cols,
                        cols == 0 || rows < kPolicySlot / cols ? rows : kPolicySlot / cols};
    const bool of_layer = matrix != kPolicyEmbed && matrix != kPolicyHead;
    l.rank_stride += int64_t{rows} * cols * (of_layer ? s.n_layer : 1);
  };
  set(kPolicyEmbed, s.act_dim + 1 + s.state_dim + kPolicyTokens, l.columns);
  set(kPolicyIn, s.d_model, 2 * l.channels);
  set(kPolicyX, l.channels, round_up_to_4(2 * kPolicyStates + s.dt_rank));
  set(kPolicyOut, l.channels, s.d_model);
  set(kPolicyWide, s.d_model, l.units);
  set(kPolicyBack, l.units, s.d_model);
  set(kPolicyHead, s.act_dim, s.d_model);
  l.layers = ranks * l.rank_stride;
  l.layer_stride = policy_step_vectors(s, ranks).size;
  l.ends = l.layers + int64_t{ranks} * s.n_layer * l.layer_stride;
  l.ends_size = 4 * s.d_model + round_up_to_4(s.act_dim);
  l.size = l.ends + l.ends_size;
  return l;
}

/// One step of num_envs environments, from what was done and seen to what is to be done.
struct PolicyStepParams {
  PolicyStepSizes sizes;
  PolicyStepLayout layout;
  PolicyStepVectors vectors;
  int num_envs;
  int envs;             // of a cluster: 1, 2, 3, 4 or 8
  const float* packed;  // see PolicyStepLayout and pack.h; on 16 bytes, as all of these
  const float* time;    // (max_timestep, d_model)
  // (num_envs, state_dim + 3): the state, standardised; return-to-go, scaled; the timestep; 1 where
  // an episode begins
  const float* seen;
  float* actions;  // (num_envs, act_dim): those of the step before, and then of this one
  // (n_layer, num_envs, kPolicyStateRows, d_inner): the convolution's last inputs, oldest first,
  // then the scan's states. Read but where an episode begins, and written.
  float* states;
};

}  // namespace dmamba::kernels
