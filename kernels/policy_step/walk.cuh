// The way through the model.
#pragma once

#include "kernels/policy_step/block.cuh"

namespace dmamba::kernels {

template <int kEnvs>
class PolicyWalk : PolicyBlock<kEnvs> {
 public:
  __device__ PolicyWalk(const PolicyStepParams& p, const PolicyStepMemory& m, float* shared)
      : Block(p, m, shared) {}

  __device__ void run() {
    const PolicyStepLayout& l = p_.layout;
    begin();
    embed();
    for (int layer = 0; layer < p_.sizes.n_layer; ++layer) {
      wait_for_phase(barriers()->vectors + layer % 2, static_cast<uint32_t>(layer / 2) & 1U);
      norm(vectors(layer) + p_.vectors.norm);
      wait_for_copies();
      __syncthreads();
      multiply(at(m_.wide), l.in);
      convolve(layer);
      __syncthreads();
      multiply(at(m_.own), l.x);
      share_projected(layer);
      scan(layer);
      __syncthreads();
      multiply(at(m_.own), l.out);
      fetch_states(layer + 1);
      add_to_stream(nullptr);
      if (p_.sizes.hidden > 0) mix(layer);
      send_vectors(layer + 2);
    }
    predict();
  }

 private:
  using Block = PolicyBlock<kEnvs>;
  using Block::at, Block::barriers, Block::facts, Block::begins, Block::exists;
  using Block::kAll, Block::kPitch, Block::kWarps;
  using Block::multiply, Block::sum_at, Block::quad_sum_at, Block::normed;
  using Block::p_, Block::m_, Block::rank_, Block::first_env_, Block::thread_, Block::weights_;
  using Block::send_to_all, Block::expect, Block::share_projected, Block::add_to_stream;
  using Block::wait_for_stream_columns;
  using Row = typename Block::Row;

  __device__ const float* vectors(int layer) const {
    return at(m_.vectors) + layer % 2 * p_.layout.layer_stride;
  }

  __device__ void send_vectors(int layer) {
    if (thread_ != 0 || layer >= p_.sizes.n_layer) return;
    const PolicyStepLayout& l = p_.layout;
    const int64_t index = int64_t{rank_} * p_.sizes.n_layer + layer;
    copy_in_bulk(at(m_.vectors) + layer % 2 * l.layer_stride,
                 p_.packed + l.layers + index * l.layer_stride, l.layer_stride,
                 barriers()->vectors + layer % 2);
  }

  /// Sends for weights and states; what was seen, as inputs of the embedding.
  __device__ void begin() {
    const PolicyStepLayout& l = p_.layout;
    if (thread_ == 0) {
      auto* all = reinterpret_cast<uint64_t*>(barriers());
      for (size_t i = 0; i < sizeof(PolicyBarriers) / sizeof(uint64_t); ++i) init_barrier(all + i);
      publish_barriers();
      weights_.begin();
      send_vectors(0);
      send_vectors(1);
      copy_in_bulk(at(m_.ends), p_.packed + l.ends, l.ends_size, &barriers()->ends);
    }
    const int state_dim = p_.sizes.state_dim, width = state_dim + 3;
    if (thread_ < kEnvs) {
      const float* row = p_.seen + int64_t{first_env_ + thread_} * width + state_dim;
      const int last = p_.sizes.max_timestep - 1;
      const int time = exists(thread_) ? min(max(static_cast<int>(row[1]), 0), last) : 0;
      facts()[thread_] = max(time - 1, 0);
      facts()[kEnvs + thread_] = time;
      facts()[2 * kEnvs + thread_] = exists(thread_) && row[2] != 0.0F;
    }
    for (int i = thread_; i < l.embed.rows * kAll; i += kPolicyThreads) {
      at(m_.wide)[i / kAll * kPitch + i % kAll] = input(i / kAll, i % kAll);
    }
    meet_cluster();
    __syncthreads();
    fetch_times();
    fetch_states(0);
  }

  /// The tokens' times into this rank's columns of the stream.
  __device__ void fetch_times() const {
    const int d = p_.sizes.d_model, width = p_.layout.columns, quads = width / 4;
    for (int i = thread_; i < kAll * quads; i += kPolicyThreads) {
      const int token = i / quads, column = rank_ * width + i % quads * 4;
      const bool action = token % kPolicyTokens == 0;
      const int row = facts()[(action ? 0 : kEnvs) + token / kPolicyTokens];
      copy_or_zero(at(m_.x) + token * d + column, p_.time + int64_t{row} * d + column, true);
    }
  }

  /// Row `row` of the embedding's inputs for a token; zero where the row is another kind's.
  __device__ float input(int row, int token) const {
    const PolicyStepSizes& s = p_.sizes;
    const int kind = token % kPolicyTokens, env = first_env_ + token / kPolicyTokens;
    if (env >= p_.num_envs) return 0.0F;
    const float* seen = p_.seen + int64_t{env} * (s.state_dim + 3);
    if (row < s.act_dim) return kind == 0 ? p_.actions[int64_t{env} * s.act_dim + row] : 0.0F;
    row -= s.act_dim;
    if (row == 0) return kind == 1 ? seen[s.state_dim] : 0.0F;
    row -= 1;
    if (row < s.state_dim) return kind == 2 ? seen[row] : 0.0F;
    return row - s.state_dim == kind ? 1.0F : 0.0F;
  }

  /// A layer's states of this rank's channels; zeros where an episode begins.
  __device__ void fetch_states(int layer) {
    if (layer >= p_.sizes.n_layer) return;
    constexpr int kConv = kPolicyTaps - 1, kRows = kConv + kPolicyStates;
    const int quads = p_.layout.channels / 4;
    for (int i = thread_; i < kEnvs * kRows * quads; i += kPolicyThreads) {
      const int quad = i % quads, row = i / quads % kRows, env = i / quads / kRows;
      const bool conv = row < kConv;
      const float* from = (conv ? conv_state(layer, env, row) : ssm_state(layer, env, row - kConv));
      float* to = conv ? at(m_.conv_states) + (env * kConv + row) * 4 * quads
                       : at(m_.ssm_states) + (env * kPolicyStates + row - kConv) * 4 * quads;
      const bool there = exists(env) && !begins(env);
      copy_or_zero(to + 4 * quad, there ? from + 4 * quad : p_.packed, there);
    }
  }

  __device__ float* conv_state(int layer, int env, int row) const {
    const int64_t index = int64_t{layer} * p_.num_envs + first_env_ + env;
    return p_.conv_states + (index * (kPolicyTaps - 1) + row) * p_.sizes.d_inner +
           rank_ * p_.layout.channels;
  }

  __device__ float* ssm_state(int layer, int env, int state) const {
    const int64_t index = int64_t{layer} * p_.num_envs + first_env_ + env;
    return p_.ssm_states + (index * kPolicyStates + state) * p_.sizes.d_inner +
           rank_ * p_.layout.channels;
  }

  /// Inputs to the stream: linear layers, times, LayerNorm.
  __device__ void embed() {
    const int d = p_.sizes.d_model, width = p_.layout.columns, quads = width / 4;
    wait_for_copies();
    multiply(at(m_.wide), p_.layout.embed);
    expect(&barriers()->stream, kAll * d);
    for (int i = thread_; i < kAll * quads; i += kPolicyThreads) {
      const int token = i / quads, column = i % quads * 4;
      float* place = at(m_.x) + token * d + rank_ * width + column;
      send_to_all(place, quad_sum_at(token, column) + quad_at(place), &barriers()->stream);
    }
    wait_for_stream_columns();
    wait_for_phase(&barriers()->ends, 0);
    for (int token = thread_ / 32; token < kAll; token += kWarps) {
      float* x = at(m_.x) + token * d;
      const Row row = normed(x, at(m_.ends));
      for (int i = 0; i < kPolicyWidest / 32; ++i) {
        if (32 * i < d) x[32 * i + thread_ % 32] = row.v[i];
      }
    }
    __syncwarp();  // norm() gives a token to the same warp
  }

  /// The stream's LayerNorm into `wide`.
  __device__ void norm(const float* parameters) {
    const int d = p_.sizes.d_model;
    for (int token = thread_ / 32; token < kAll; token += kWarps) {
      const Row row = normed(at(m_.x) + token * d, parameters);
#pragma unroll
      for (int i = 0; i < kPolicyWidest / 32; ++i) {
        if (32 * i < d) at(m_.wide)[(32 * i + thread_ % 32) * kPitch + token] = row.v[i];
      }
    }
  }

  /// Sums of in_proj to u (into `own`) and SiLU(z).
  __device__ void convolve(int layer) {
    constexpr int kConv = kPolicyTaps - 1;
    static_assert(kConv == kPolicyTokens, "a step replaces the whole state");
    const int channels = p_.layout.channels, half = kEnvs * channels;
    const float* taps = vectors(layer) + p_.vectors.conv;
    for (int i = thread_; i < 2 * half; i += kPolicyThreads) {
      const bool is_z = i >= half;
      const int env = (is_z ? i - half : i) / channels, c = (is_z ? i - half : i) % channels;
      float values[kConv + kPolicyTokens];  // what came before, then the tokens
#pragma unroll
      for (int k = 0; k < kPolicyTokens; ++k) {
        values[kConv + k] = sum_at(kPolicyTokens * env + k, is_z ? channels + c : c);
      }
      if (is_z) {
#pragma unroll
        for (int k = 0; k < kPolicyTokens; ++k) {
          const float z = values[kConv + k];
          at(m_.gate)[(kPolicyTokens * env + k) * channels + c] = z * sigmoid(z);
        }
        continue;
      }
      if (begins(env)) values[kConv] = 0.0F;
#pragma unroll
      for (int k = 0; k < kConv; ++k) {
        values[k] = at(m_.conv_states)[(env * kConv + k) * channels + c];
        if (exists(env)) conv_state(layer, env, k)[c] = values[kConv + k];
      }
#pragma unroll
      for (int k = 0; k < kPolicyTokens; ++k) {
        float u = taps[kPolicyTaps * channels + c];
#pragma unroll
        for (int tap = 0; tap < kPolicyTaps; ++tap) {
          u = fmaf(taps[tap * channels + c], values[k + tap], u);
        }
        at(m_.own)[c * kPitch + kPolicyTokens * env + k] = u * sigmoid(u);
      }
    }
  }

  /// Four lanes have a channel of an environment, four states each; eight channels lie side by
  /// side. u in `own` becomes y.
  __device__ void scan(int layer) {
    constexpr int kLanes = 4, kMyStates = kPolicyStates / kLanes;
    const int channels = p_.layout.channels;
    const float* v = vectors(layer);
    for (int i = thread_; i < kEnvs * channels * kLanes; i += kPolicyThreads) {
      const int env = i / (kLanes * channels), place = i % (kLanes * channels);
      const int c = place / 32 * 8 + place % 8, part = place / 8 % kLanes;
      const int first_token = kPolicyTokens * env;
      const float my_dt = part < kPolicyTokens ? step_size(v, first_token + part, c) : 0.0F;
      float A[kMyStates], h[kMyStates], u[kPolicyTokens], y[kPolicyTokens];
#pragma unroll
      for (int n = 0; n < kMyStates; ++n) {
        const int state = kMyStates * part + n;
        A[n] = v[p_.vectors.A + state * channels + c];
        h[n] = at(m_.ssm_states)[(env * kPolicyStates + state) * channels + c];
      }
      const bool skips = begins(env);
#pragma unroll
      for (int k = 0; k < kPolicyTokens; ++k) {
        const float dt = __shfl_sync(~0U, my_dt, place % 8 + 8 * k);
        const float* projected = at(m_.projected) + (first_token + k) * p_.layout.x.cols;
        const float4 B = quad_at(projected + kMyStates * part),
                     C = quad_at(projected + kPolicyStates + kMyStates * part);
        const float Bs[] = {B.x, B.y, B.z, B.w}, Cs[] = {C.x, C.y, C.z, C.w};
        u[k] = at(m_.own)[c * kPitch + first_token + k];
        y[k] = 0.0F;
        if (k == 0 && skips) continue;
#pragma unroll
        for (int n = 0; n < kMyStates; ++n) {
          h[n] = fmaf(exp2_fast(dt * A[n]), h[n], dt * u[k] * Bs[n]);
          y[k] = fmaf(Cs[n], h[n], y[k]);
        }
      }
#pragma unroll
      for (int n = 0; n < kMyStates; ++n) {
        if (exists(env)) ssm_state(layer, env, kMyStates * part + n)[c] = h[n];
      }
#pragma unroll
      for (int k = 0; k < kPolicyTokens; ++k) {
        y[k] += __shfl_xor_sync(~0U, y[k], 8);
        y[k] += __shfl_xor_sync(~0U, y[k], 16);
        if (part != k) continue;
        at(m_.own)[c * kPitch + first_token + k] =
            fmaf(v[p_.vectors.D + c], u[k], y[k]) * at(m_.gate)[(first_token + k) * channels + c];
      }
    }
  }

  /// softplus(dt_proj(dt) + bias) of a token and channel.
  __device__ float step_size(const float* v, int token, int c) const {
    const int channels = p_.layout.channels, rank = p_.sizes.dt_rank;
    const float* dt = at(m_.projected) + token * p_.layout.x.cols + 2 * kPolicyStates;
    const float* weights = v + p_.vectors.dt + c;
    float sum = weights[rank * channels];
#pragma unroll 4
    for (int i = 0; i < rank; ++i) sum = fmaf(weights[i * channels], dt[i], sum);
    return softplus(sum);
  }

  __device__ void mix(int layer) {
    const float* v = vectors(layer);
    norm(v + p_.vectors.mixer_norm);
    __syncthreads();
    multiply(at(m_.wide), p_.layout.wide);
    const int units = p_.layout.units;
    for (int i = thread_; i < kAll * units; i += kPolicyThreads) {
      const int token = i / units, unit = i % units;
      const float x = sum_at(token, unit) + v[p_.vectors.wide_bias + unit];
      constexpr float kRootHalf = 0.70710678118654752F;
      at(m_.own)[unit * kPitch + token] = 0.5F * x * (1.0F + erff(x * kRootHalf));
    }
    __syncthreads();
    multiply(at(m_.own), p_.layout.back);
    add_to_stream(v + p_.vectors.back_bias);
  }

  /// Actions off the state's tokens; an environment is one rank's, an action one warp's.
  __device__ void predict() {
    const int d = p_.sizes.d_model, act_dim = p_.sizes.act_dim, lane = thread_ % 32;
    const float* weights = weights_.take();
    const float *norm = at(m_.ends) + 2 * d, *bias = norm + 2 * d;
    for (int env = rank_; env < kEnvs; env += p_.layout.ranks) {
      if (!exists(env)) break;
      const Row x = normed(at(m_.x) + (kPolicyTokens * env + kPolicyTokens - 1) * d, norm);
      for (int action = thread_ / 32; action < act_dim; action += kWarps) {
        float sum = 0.0F;
#pragma unroll
        for (int i = 0; i < kPolicyWidest / 32; ++i) {
          if (32 * i < d) sum = fmaf(x.v[i], weights[action * d + 32 * i + lane], sum);
        }
        sum = sum_warp(sum);
        if (lane == 0) {
          p_.actions[int64_t{first_env_ + env} * act_dim + action] = tanhf(sum + bias[action]);
        }
      }
    }
  }
};

}  // namespace dmamba::kernels
