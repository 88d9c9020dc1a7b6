// Parameters of the recurrent policy's step in one launch. Free of torch and of CUDA.
#pragma once

#include <cstdint>

namespace dmamba::kernels {

constexpr int kPolicyStates = 16, kPolicyTaps = 4;  // d_state and d_conv of what is compiled
constexpr int kPolicyTokens = 3;                    // of a step: what was done, return-to-go, state
constexpr int kPolicySlot = 8192;                   // floats of weights that come in one copy

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

/// A matrix as a block reads it: inputs in rows, outputs side by side, a multiple of 4.
struct PolicyStepShape {
  int rows, cols;
};

/// The blocks of a cluster ("ranks") share the channels, the mixer's hidden units, and what is
/// left to add up of the residual stream. Each finds its parts of the weights in the order in which
/// it reads them. In floats, from the packed memory's beginning:
struct PolicyStepLayout {
  int ranks;
  int channels, units, columns;  // of a rank: of d_inner, of hidden, of d_model
  // act_dim + 1 + state_dim inputs and a bias for each kind of token -> columns
  PolicyStepShape embed;
  PolicyStepShape in;    // d_model -> x and then z of the channels
  PolicyStepShape x;     // channels -> B, C, dt and nothing up to a multiple of 4
  PolicyStepShape out;   // channels -> d_model
  PolicyStepShape wide;  // d_model -> units
  PolicyStepShape back;  // units -> d_model
  PolicyStepShape head;  // the other way round: (act_dim, d_model), all of it in every rank
  int64_t rank_stride;   // of those matrices: (ranks, rank_stride)
  // (ranks, n_layer, layer_stride): for a layer the vectors of PolicyStepVectors
  int64_t layers;
  int layer_stride;
  // embed_ln's weight and bias, ln_f's, the head's bias
  int64_t ends;
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
  l.embed = {s.act_dim + 1 + s.state_dim + kPolicyTokens, l.columns};
  l.in = {s.d_model, 2 * l.channels};
  l.x = {l.channels, round_up_to_4(2 * kPolicyStates + s.dt_rank)};
  l.out = {l.channels, s.d_model};
  l.wide = {s.d_model, l.units};
  l.back = {l.units, s.d_model};
  l.head = {s.act_dim, s.d_model};
  const auto size = [](const PolicyStepShape& shape) { return int64_t{shape.rows} * shape.cols; };
  l.rank_stride = size(l.embed) + size(l.head) +
                  s.n_layer * (size(l.in) + size(l.x) + size(l.out) + size(l.wide) + size(l.back));
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
  // (n_layer, num_envs, d_conv - 1, d_inner), oldest first, (n_layer, num_envs, d_state, d_inner):
  // read but where an episode begins, and written
  float *conv_states, *ssm_states;
};

}  // namespace dmamba::kernels
