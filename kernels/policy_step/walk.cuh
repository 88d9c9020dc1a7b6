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
    begin();
#pragma unroll 1
    for (PolicyStage stage; stage.matrix != kPolicyHead;) {
      const int matrix = stage.matrix, layer = stage.layer;
      const bool own_inputs = matrix == kPolicyX || matrix == kPolicyOut || matrix == kPolicyBack;
      if (matrix == kPolicyIn || matrix == kPolicyWide) norm(stage);
      multiply(at(own_inputs ? m_.own : m_.wide), p_.layout.shapes[matrix]);
      if (matrix == kPolicyIn) {
        convolve(layer);
      } else if (matrix == kPolicyX) {
        share_projected(layer);
        scan(layer);
      } else if (matrix == kPolicyWide) {
        activate(vectors(layer) + p_.vectors.wide_bias);
      } else {
        if (matrix == kPolicyOut) fetch_states(layer + 1);
        add_to_stream(own_inputs,
                      matrix == kPolicyBack ? vectors(layer) + p_.vectors.back_bias : nullptr);
      }
      if (stage.ends_layer(p_.sizes)) send_for_vectors(layer + 2);
      stage.advance(p_.sizes);
    }
    predict();
  }

 private:
  using Block = PolicyBlock<kEnvs>;
  using Block::add_to_stream, Block::share_projected;
  using Block::at, Block::barriers, Block::facts, Block::begins, Block::exists;
  using Block::kAll, Block::kPitch, Block::kTurns, Block::kWarps;
  using Block::multiply, Block::normed, Block::sums_at;
  using Block::p_, Block::m_, Block::rank_, Block::first_env_, Block::thread_, Block::weights_;
  using Row = typename Block::Row;

  static constexpr int kConv = kPolicyTaps - 1;
  static_assert(kConv == kPolicyTokens, "a step replaces the convolution's whole state");

  __device__ const float* vectors(int layer) const {
    return at(m_.vectors) + layer % 2 * p_.layout.layer_stride;
  }

  __device__ void send_for_vectors(int layer) {
    if (thread_ != kPolicySender || layer >= p_.sizes.n_layer) return;
    const PolicyStepLayout& l = p_.layout;
    const int64_t index = int64_t{rank_} * p_.sizes.n_layer + layer;
    copy_in_bulk(at(m_.vectors) + layer % 2 * l.layer_stride,
                 p_.packed + l.layers + index * l.layer_stride, l.layer_stride,
                 barriers()->vectors + layer % 2);
  }

  /// Sends for weights and states; what was seen, as inputs of the embedding.
  __device__ void begin() {
    if (thread_ == kPolicySender) {
      auto* all = reinterpret_cast<uint64_t*>(barriers());
      for (size_t i = 0; i < sizeof(PolicyBarriers) / sizeof(uint64_t); ++i) init_barrier(all + i);
      publish_barriers();
      weights_.begin();
      send_for_vectors(0);
      send_for_vectors(1);
      copy_in_bulk(at(m_.ends), p_.packed + p_.layout.ends, p_.layout.ends_size, &barriers()->ends);
    }
    const int state_dim = p_.sizes.state_dim;
    if (thread_ < kEnvs) {
      const float* row = p_.seen + int64_t{first_env_ + thread_} * (state_dim + 3) + state_dim;
      const int last = p_.sizes.max_timestep - 1;
      const int time = exists(thread_) ? min(max(static_cast<int>(row[1]), 0), last) : 0;
      facts()[thread_] = max(time - 1, 0);
      facts()[kEnvs + thread_] = time;
      facts()[2 * kEnvs + thread_] = exists(thread_) && row[2] != 0.0F;
    }
    const int inputs = p_.layout.shapes[kPolicyEmbed].rows;
#pragma unroll 1
    for (int i = thread_; i < inputs * kAll; i += kPolicyThreads) {
      at(m_.wide)[i / kAll * kPitch + i % kAll] = input(i / kAll, i % kAll);
    }
    meet_cluster();
    __syncthreads();
    fetch_times();
    fetch_states(0);
    wait_for_copies();  // the product's barrier shows them to all
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

  /// The tokens' times into this rank's columns of the stream.
  __device__ void fetch_times() const {
    const int d = p_.sizes.d_model, width = p_.layout.columns, quads = width / 4;
#pragma unroll 1
    for (int i = thread_; i < kAll * quads; i += kPolicyThreads) {
      const Quotient item = divide(i, quads);
      const int token = item.whole, column = rank_ * width + 4 * item.rest;
      const bool action = token % kPolicyTokens == 0;
      const int row = facts()[(action ? 0 : kEnvs) + token / kPolicyTokens];
      copy_async(at(m_.x) + token * d + column, p_.time + int64_t{row} * d + column, 16);
    }
  }

  /// A layer's states of this rank's channels; zeros where an episode begins.
  __device__ void fetch_states(int layer) const {
    if (layer >= p_.sizes.n_layer) return;
    const int channels = p_.layout.channels, quads = channels / 4;
#pragma unroll 1
    for (int i = thread_; i < kEnvs * kPolicyStateRows * quads; i += kPolicyThreads) {
      const Quotient item = divide(i, quads);
      const int env = item.whole / kPolicyStateRows, row = item.whole % kPolicyStateRows;
      const bool there = exists(env) && !begins(env);
      copy_async(at(m_.states) + 4 * i, there ? state(layer, env, row) + 4 * item.rest : p_.packed,
                 there ? 16 : 0);
    }
  }

  /// A row of an environment's states, from this rank's channels on.
  __device__ float* state(int layer, int env, int row) const {
    const int64_t index = int64_t{layer} * p_.num_envs + first_env_ + env;
    return p_.states + (index * kPolicyStateRows + row) * p_.sizes.d_inner +
           rank_ * p_.layout.channels;
  }

  /// The stream's LayerNorm into `wide`; the embedding's comes before the first layer's.
  __device__ void norm(const PolicyStage& stage) {
    const int d = p_.sizes.d_model, layer = stage.layer, lane = thread_ % 32;
    const bool in = stage.matrix == kPolicyIn, first = in && layer == 0;
    if (first) wait_for_phase(&barriers()->ends, 0);
    if (in) wait_for_phase(barriers()->vectors + layer % 2, static_cast<uint32_t>(layer / 2) & 1U);
    const float* parameters = vectors(layer) + (in ? p_.vectors.norm : p_.vectors.mixer_norm);
#pragma unroll 1
    for (int token = thread_ / 32; token < kAll; token += kWarps) {
      float* x = at(m_.x) + token * d;
#pragma unroll 1
      for (int last = first ? 0 : 1; last < 2; ++last) {
        const Row row = normed(x, last != 0 ? parameters : at(m_.ends));
        float* to = last != 0 ? at(m_.wide) + token + lane * kPitch : x + lane;
        const int stride = last != 0 ? 32 * kPitch : 32;
#pragma unroll
        for (int i = 0; i < kTurns; ++i) {
          if (32 * i < d) to[i * stride] = row.v[i];
        }
      }
    }
    wait_for_copies();
    __syncthreads();
  }

  /// Sums of in_proj to u (into `own`) and SiLU(z).
  __device__ void convolve(int layer) {
    const int channels = p_.layout.channels, half = kEnvs * channels;
    const float* taps = vectors(layer) + p_.vectors.conv;
#pragma unroll 1
    for (int i = thread_; i < 2 * half; i += kPolicyThreads) {
      const bool is_z = i >= half;
      const Quotient item = divide(is_z ? i - half : i, channels);
      const int env = item.whole, c = item.rest, first_token = kPolicyTokens * env;
      float now[kPolicyTokens];
      sums_at(env, is_z ? channels + c : c, now);
      if (is_z) {
#pragma unroll
        for (int k = 0; k < kPolicyTokens; ++k) {
          at(m_.gate)[(first_token + k) * channels + c] = now[k] * sigmoid(now[k]);
        }
        continue;
      }
      if (begins(env)) now[0] = 0.0F;
      float window[kConv + kPolicyTokens];  // what came before, then the tokens
#pragma unroll
      for (int k = 0; k < kConv; ++k) {
        window[k] = at(m_.states)[(env * kPolicyStateRows + k) * channels + c];
        window[kConv + k] = now[k];
        if (exists(env)) state(layer, env, k)[c] = now[k];
      }
#pragma unroll
      for (int k = 0; k < kPolicyTokens; ++k) {
        float u = taps[kPolicyTaps * channels + c];
#pragma unroll
        for (int tap = 0; tap < kPolicyTaps; ++tap) {
          u = fmaf(taps[tap * channels + c], window[k + tap], u);
        }
        at(m_.own)[c * kPitch + first_token + k] = u * sigmoid(u);
      }
    }
    __syncthreads();
  }

  /// Four lanes have a channel of an environment, four states each; eight channels lie side by
  /// side. u in `own` becomes y.
  __device__ void scan(int layer) {
    constexpr int kLanes = 4, kMyStates = kPolicyStates / kLanes;
    const int channels = p_.layout.channels, cols = p_.layout.shapes[kPolicyX].cols;
    const float* v = vectors(layer);
#pragma unroll 1
    for (int i = thread_; i < kEnvs * channels * kLanes; i += kPolicyThreads) {
      const Quotient item = divide(i, kLanes * channels);
      const int env = item.whole, place = item.rest;
      const int c = place / 32 * 8 + place % 8, part = place / 8 % kLanes;
      const int first_token = kPolicyTokens * env;
      const float my_dt = part < kPolicyTokens ? step_size(v, first_token + part, c) : 0.0F;
      const int first_row = kConv + kMyStates * part;
      float A[kMyStates], h[kMyStates], u[kPolicyTokens], y[kPolicyTokens];
#pragma unroll
      for (int n = 0; n < kMyStates; ++n) {
        A[n] = v[p_.vectors.A + (kMyStates * part + n) * channels + c];
        h[n] = at(m_.states)[(env * kPolicyStateRows + first_row + n) * channels + c];
      }
      const bool skips = begins(env);
#pragma unroll
      for (int k = 0; k < kPolicyTokens; ++k) {
        const float dt = __shfl_sync(~0U, my_dt, place % 8 + 8 * k);
        const float* projected = at(m_.projected) + (first_token + k) * cols + kMyStates * part;
        const float4 B = quad_at(projected), C = quad_at(projected + kPolicyStates);
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
      if (exists(env)) {
#pragma unroll
        for (int n = 0; n < kMyStates; ++n) state(layer, env, first_row + n)[c] = h[n];
      }
      __syncwarp();  // all lanes of a channel have read u, whose place y takes
#pragma unroll
      for (int k = 0; k < kPolicyTokens; ++k) {
        y[k] += __shfl_xor_sync(~0U, y[k], 8);
        y[k] += __shfl_xor_sync(~0U, y[k], 16);
        if (part != k) continue;
        at(m_.own)[c * kPitch + first_token + k] =
            fmaf(v[p_.vectors.D + c], u[k], y[k]) * at(m_.gate)[(first_token + k) * channels + c];
      }
    }
    __syncthreads();
  }

  /// softplus(dt_proj(dt) + bias) of a token and channel.
  __device__ float step_size(const float* v, int token, int c) const {
    const int channels = p_.layout.channels, rank = p_.sizes.dt_rank;
    const float* dt =
        at(m_.projected) + token * p_.layout.shapes[kPolicyX].cols + 2 * kPolicyStates;
    const float* weights = v + p_.vectors.dt + c;
    float sum = weights[rank * channels];
#pragma unroll 4
    for (int i = 0; i < rank; ++i) sum = fmaf(weights[i * channels], dt[i], sum);
    return softplus(sum);
  }

  /// GELU of the mixer's hidden units, into `own`.
  __device__ void activate(const float* bias) {
    constexpr float kRootHalf = 0.70710678118654752F;
    const int units = p_.layout.units;
#pragma unroll 1
    for (int i = thread_; i < kEnvs * units; i += kPolicyThreads) {
      const Quotient item = divide(i, units);
      float sums[kPolicyTokens];
      sums_at(item.whole, item.rest, sums);
#pragma unroll
      for (int k = 0; k < kPolicyTokens; ++k) {
        const float x = sums[k] + bias[item.rest];
        at(m_.own)[item.rest * kPitch + kPolicyTokens * item.whole + k] =
            0.5F * x * (1.0F + erff(x * kRootHalf));
      }
    }
    __syncthreads();
  }

  /// Actions off the state's tokens; an environment is one rank's, an action one warp's.
  __device__ void predict() {
    const int d = p_.sizes.d_model, act_dim = p_.sizes.act_dim, lane = thread_ % 32;
    const float* weights = weights_.take();
    const float *norm = at(m_.ends) + 2 * d, *bias = norm + 2 * d;
#pragma unroll 1
    for (int env = rank_; env < kEnvs && exists(env); env += p_.layout.ranks) {
      const Row x = normed(at(m_.x) + (kPolicyTokens * env + kPolicyTokens - 1) * d, norm);
#pragma unroll 1
      for (int action = thread_ / 32; action < act_dim; action += kWarps) {
        float sum = 0.0F;
#pragma unroll
        for (int i = 0; i < kTurns; ++i) {
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
