// The selective scan backward (equations: params.h), one warp for kChannels channels of a chunk.
//
//   g_t = C_t dy_t + a_{t+1} g_{t+1}                    a_t = exp(dt_t A), g_t the gradient of h_t
//   dC_t = sum_channels dy_t h_t,   dB_t = sum_channels dt_t u_t g_t
//   ddt_t = sum_states A a_t h_{t-1} g_t + u_t sum_states B_t g_t,   dA = sum_t dt_t a_t h_{t-1}
//   du_t = D dy_t + dt_t sum_states B_t g_t,   dy = dout SiLU(z)
//   dz = dout y SiLU'(z) = dout out (1/z + 1 - sigmoid(z))   for out = y SiLU(z)
//
// The block walks from the last token to the first, a tile at a time: forward from the checkpoint
// before it, with all h in registers, then back. dB and dC are summed over the channels of the
// block in a fixed order; what the blocks leave, and dA, dD and ddelta_bias of the sequences,
// gradients.cu sums. No atomics.
//
// dz comes from what the forward pass returned, so that the walk needs no y; but where z is next to
// zero, out is too, and y is computed again (shut_gates). For z beyond 2^126 dz is zero.
//
// Sums over lanes (of a channel: ddt, B g; over a warp's channels: dB, dC) go through shared
// memory: every lane leaves its part, then each adds up a few of them. Shuffles, of which as many
// are needed as there are values, and the selects that go with them took more instructions.
#pragma once

#include "kernels/selective_scan/backward_input.cuh"
#include "kernels/selective_scan/backward_token.cuh"

namespace dmamba::kernels {

/// kUsual: as in forward.cuh, and more than one block for the channels.
template <class Shape, class T, bool kUsual>
class BackwardWarp : BackwardInput<Shape, T, kUsual> {
  using Input = BackwardInput<Shape, T, kUsual>;
  using Input::kItems;
  using Input::kSteps;
  using Input::kWidth;
  using typename Input::Block;
  using typename Input::Lane;
  using typename Input::Shared;

 public:
  __device__ BackwardWarp(const SelectiveScanBackwardParams& p, const BackwardWork& work,
                          const ScanPlace& at, Shared& shared, int channel_block, int warp,
                          int lane)
      : Input(p, work, at, shared, warp, lane),
        warp_(warp),
        du_(results(p.du)),
        ddelta_(results(p.ddelta)),
        dz_(results(p.dz)) {
    const int64_t part = channel_block * p.batch + at.batch;
    dBdC_part_ = work.parts.dBdC + part * p.length * 2 * p.d_state;
  }

  __device__ void run() {
    this->template fetch_tile<false>(first_);
    part_.load_A(A_, p_, kUsual || work_.vectors.A);
    const bool last = at_.chunk + 1 == work_.n_chunks;
    part_.load(ag_,
               last ? p_.dlast_state : packed_state(work_.carries.state, p_.d_inner, p_.d_state),
               p_, last ? at_.batch : at_.batch * work_.n_chunks + at_.chunk);
    for (int step = first_; step >= at_.begin; step -= kSteps) {
      const TileFlags flags{__ballot_sync(~0U, flag_ != 0)};
      if (__all_sync(~0U, flags.plain() && all_channels_)) {
        tile<true>(step, flags);
      } else {
        tile<false>(step, flags);
      }
      buffer_ ^= 1;
    }
    __syncthreads();
    sum_over_warps(at_.begin);
    leave();
  }

 private:
  using Input::all_channels_;
  using Input::at_;
  using Input::bias_;
  using Input::buffer_;
  using Input::D_;
  using Input::d_state;
  using Input::first_;
  using Input::flag_;
  using Input::has_z;
  using Input::item_;
  using Input::lane_;
  using Input::load_start;
  using Input::load_states;
  using Input::mine_;
  using Input::p_;
  using Input::part_;
  using Input::shared_;
  using Input::wide;
  using Input::work_;

  __device__ RowWalk<T> results(const Sequence& s) const {
    return {s, at_.batch, first_ + item_.token, at_.channel + item_.channel};
  }

  /// kPlain: all tokens count, no segment starts, all channels are there.
  template <bool kPlain>
  __device__ __forceinline__ void tile(int step, TileFlags flags) {
    wait_for_copies();
    __syncwarp();
    float h[kSteps + 1][Shape::kPerLane][kStatesPerLane];
    load_start(step, h[0]);
    bool shut;
    if (kUsual || p_.delta_softplus) {
      shut = prepare<kPlain, true>(step, flags);
    } else {
      shut = prepare<kPlain, false>(step, flags);
    }
    shut = __any_sync(~0U, shut);
    __syncthreads();
    sum_over_warps(step + kSteps);
    if (shut) shut_gates<kPlain>(step, flags, h[0]);
    if (step > at_.begin) this->template fetch_tile<kPlain>(step - kSteps);
    walk<kPlain>(step, flags, h);
  }

  /// What is done once a channel and token. All is read before anything is written: the compiler
  /// keeps their order. Returns whether an item's dz is left to shut_gates().
  template <bool kPlain, bool kSoftplus>
  __device__ __forceinline__ bool prepare(int step, TileFlags flags) {
    const int group = lane_ / Shape::kLanes, c = item_.channel % Shape::kPerLane;
    Pack<T, kWidth> packed_u[kItems], packed_delta[kItems], packed_z[kItems], packed_dout[kItems],
        packed_out[kItems];
    bool shut = false;
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const int token = item_.token + i * Block::kSumTokens;
      packed_delta[i] = pack_at(mine_.delta[token]);
      if (has_z()) packed_z[i] = pack_at(mine_.z[token]);
      if (has_z()) packed_out[i] = pack_at(mine_.out[token]);
      packed_dout[i] = pack_at(mine_.dout[token]);
      packed_u[i] = pack_at(mine_.u[token]);
    }
    const auto states = load_states();
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const int token = item_.token + i * Block::kSumTokens;
      const bool counts = kPlain || flags.counts(token);
      float u[kWidth], delta[kWidth], dy[kWidth], dt_dtu[2 * kWidth];
      BackwardKept<kWidth> kept;
      packed_u[i].get(u);
      packed_delta[i].get(delta);
      packed_dout[i].get(dy);
      if (has_z()) {
        const int left = left_of<kPlain>(step, i);
        float z[kWidth], dz[kWidth];
        packed_z[i].get(z);
        packed_out[i].get(dz);
#pragma unroll
        for (int j = 0; j < kWidth; ++j) {
          const Sigmoid s = sigmoid_with_complement(z[j]);
          const bool closed = is_shut(z[j]);
          shut = shut || (closed && dy[j] != 0.0F && j < left);
          // In this order: what is in brackets is of y's size.
          dz[j] = closed ? 0.0F : dy[j] * (dz[j] * (reciprocal_fast(z[j]) + s.complement));
          dy[j] *= z[j] * s.value;
        }
        store_some<T, kWidth>(dz_.row(i * Block::kSumTokens), dz, left, wide());
      }
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        const float x = delta[j] + bias_[j];
        const Softplus step = kSoftplus ? softplus_with_derivative(x) : Softplus{x, 1.0F};
        kept.D_dy[j] = D_[j] * dy[j];
        kept.dt[j] = dt_dtu[2 * j] = counts ? step.value : 0.0F;
        kept.dsoftplus[j] = counts ? kLn2 * step.derivative : 0.0F;
        kept.u_dsoftplus[j] = u[j] * step.derivative;
        dt_dtu[2 * j + 1] = counts ? step.value * u[j] : 0.0F;
        dD_[j] = fmaf(dy[j], u[j], dD_[j]);
      }
      mine_.kept[i][lane_] = kept;
      if (item_.owned_by(lane_)) {
        store_pack<float, 2 * kWidth>(&mine_.tokens[token].dt_dtu[group][2 * c], dt_dtu);
        store_pack<float, kWidth>(&mine_.tokens[token].dy[group][c], dy);
      }
    }
    this->template widen_states<kPlain>(states, flags);
    return shut;
  }

  /// Whether the output y SiLU(z) may not tell y. SiLU'(z) is 1/2 there.
  __device__ __forceinline__ static bool is_shut(float z) { return fabsf(z) < 0x1p-25F; }

  /// dz of the items whose gates are shut, for which the tile is walked once more. Rare, and so
  /// written to be short.
  template <bool kPlain>
  __device__ __forceinline__ void shut_gates(int step, TileFlags flags, const Lane& before) {
    Lane h;
#pragma unroll
    for (int c = 0; c < Shape::kPerLane; ++c) {
#pragma unroll
      for (int s = 0; s < kStatesPerLane; ++s) h[c][s] = before[c][s];
    }
#pragma unroll 1
    for (int t = 0; t < kSteps; ++t) {
      Token now = load_token(t);
      load_C(now, t);
      Lane decays;
      find_decays<kPlain>(now, A_, flags.forget(t), decays);
      float y[Shape::kPerLane], no_dC[kStatesPerLane];
      forth(now, decays, h, h, no_dC);
#pragma unroll
      for (int c = 0; c < Shape::kPerLane; ++c) {
#pragma unroll
        for (int s = 0; s < kStatesPerLane; ++s) {
          y[c] = s == 0 ? now.C[0] * h[c][0] : fmaf(now.C[s], h[c][s], y[c]);
        }
#pragma unroll
        for (int lanes = 1; lanes < Shape::kLanes; lanes *= 2) {
          y[c] += __shfl_xor_sync(~0U, y[c], lanes);
        }
      }
      const int i = t / Block::kSumTokens, left = left_of<kPlain>(step, i);
      if (t % Block::kSumTokens != item_.token) continue;
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        const float dout = to_float(mine_.dout[t][item_.channel + j]);
        if (j >= left || !is_shut(to_float(mine_.z[t][item_.channel + j]))) continue;
        const int c = kWidth == Shape::kPerLane ? j : item_.channel % Shape::kPerLane;
        const float D_u = D_[j] * to_float(mine_.u[t][item_.channel + j]);
        dz_.row(i * Block::kSumTokens)[j] = from_float<T>(0.5F * dout * (D_u + y[c]));
      }
    }
    __syncwarp();  // the next tile's input comes to where z and dout are
  }

  /// The lane's item in a row of a tile's input.
  __device__ __forceinline__ Pack<T, kWidth> pack_at(const T (&row)[Shape::kChannels]) const {
    return reinterpret_cast<const Pack<T, kWidth>&>(row[item_.channel]);
  }

  /// One tile forward, with h kept, then backward; `h[0]` is before it. dC, which needs h alone, is
  /// summed on the way forward, which otherwise waits for exponentials. The next token is read
  /// before anything is written, since the compiler keeps their order; and what is summed at the
  /// end of a batch has until the next one writes.
  template <bool kPlain>
  __device__ __forceinline__ void walk(int step, TileFlags flags,
                                       float (&h)[kSteps + 1][Shape::kPerLane][kStatesPerLane]) {
    constexpr int kBatch = Block::kSumTokens, kPer = Shape::kPerLane;
    Token now = load_token(0);
    Lane kept[kKept];  // of the last tokens
#pragma unroll
    for (int t = 0; t < kSteps; ++t) {
      float dC[kStatesPerLane];
      Lane passing;
      Lane& decays = t < kSteps - kKept ? passing : kept[t - kSteps + kKept];
      find_decays<kPlain>(now, A_, flags.forget(t), decays);
      forth(now, decays, h[t], h[t + 1], dC);
      if (t + 1 < kSteps) now = load_token(t + 1);
      store_pack<float, kStatesPerLane>(&mine_.parts.matrix[t][lane_ * kStatesPerLane], dC);
    }
    load_C(now, kSteps - 1);
    __syncwarp();
    sum_over_groups(1);
#pragma unroll
    for (int t = kSteps - 1; t >= 0; --t) {
      float dB[kStatesPerLane], ddt_Bg[2 * kPer];
      Lane again;
      Lane& decays = t < kSteps - kKept ? again : kept[t - kSteps + kKept];
      if (t < kSteps - kKept) find_decays<kPlain>(now, A_, flags.forget(t), decays);
      back(now, decays, h[t], A_, ag_, dA_, dB, ddt_Bg);
      if (t > 0) {
        now = load_token(t - 1);
        load_C(now, t - 1);
      }
      if (t % kBatch == kBatch - 1) __syncwarp();
      store_pack<float, kStatesPerLane>(&mine_.parts.matrix[t][lane_ * kStatesPerLane], dB);
      store_pack<float, 2 * kPer>(&mine_.parts.ddt_Bg[t % kBatch][lane_ * 2 * kPer], ddt_Bg);
      if (t % kBatch == 0) {
        __syncwarp();
        finish<kPlain>(step, t / kBatch);
      }
    }
    sum_over_groups(0);
    du_.move(-kSteps);
    ddelta_.move(-kSteps);
    dz_.move(-kSteps);
  }

  using Token = ScanToken<Shape>;
  __device__ __forceinline__ Token load_token(int t) const {
    const int group = lane_ / Shape::kLanes;
    Token token;
    load_pack<float, 2 * Shape::kPerLane>(mine_.tokens[t].dt_dtu[group], token.dt_dtu);
    load_pack<float, Shape::kPerLane>(mine_.tokens[t].dy[group], token.dy);
    load_pack<float, kStatesPerLane>(&shared_.BC[buffer_][0][t][part_.state], token.B);
    return token;
  }
  __device__ __forceinline__ void load_C(Token& token, int t) const {
    load_pack<float, kStatesPerLane>(&shared_.BC[buffer_][1][t][part_.state], token.C);
  }

  /// dB (matrix 0) or dC, summed over the warp's channels.
  __device__ __forceinline__ void sum_over_groups(int matrix) {
    constexpr int kAll = kSteps * Shape::kLanes;
#pragma unroll
    for (int i0 = 0; i0 < kAll; i0 += 32) {
      const int i = i0 + lane_, t = i / Shape::kLanes, n = i % Shape::kLanes * kStatesPerLane;
      if (kAll < 32 && i >= kAll) break;
      float sum[kStatesPerLane];
#pragma unroll
      for (int group = 0; group < Shape::kGroups; ++group) {
        float part[kStatesPerLane];
        load_pack<float, kStatesPerLane>(&mine_.parts.matrix[t][group * Shape::kStates + n], part);
#pragma unroll
        for (int s = 0; s < kStatesPerLane; ++s) sum[s] = group == 0 ? part[s] : sum[s] + part[s];
      }
      store_pack<float, kStatesPerLane>(
          &shared_.dBdC[buffer_][warp_][t][matrix * Shape::kStates + n], sum);
    }
  }

  /// dB and dC of the block's channels for the tile before in work, which began at `step`.
  __device__ __forceinline__ void sum_over_warps(int step) {
    constexpr int kRow = Block::kRow, kSize = kSteps * kRow;
    const float* from = &shared_.dBdC[buffer_ ^ 1][0][0][0];
    if constexpr (kUsual) {
      // Before the first tile whatever is there, which is stored nowhere.
      constexpr int kEach = kSize / Block::kThreads;
      const int i = static_cast<int>(threadIdx.x) * kEach, t = i / kRow;
      float sum[kEach], more[kEach];
      load_pack<float, kEach>(from + i, sum);
#pragma unroll
      for (int w = 1; w < Block::kWarps; ++w) {
        load_pack<float, kEach>(from + w * kSize + i, more);
#pragma unroll
        for (int j = 0; j < kEach; ++j) sum[j] += more[j];
      }
      if (step + t < at_.end) store_pack<float, kEach>(dBdC_part_ + step * kRow + i, sum);
    } else {
      if (step >= at_.end) return;  // none yet
#pragma unroll
      for (int first = 0; first < kSize; first += Block::kThreads) {
        const int i = first + static_cast<int>(threadIdx.x), t = i / kRow, n = i % Shape::kStates;
        if (kSize % Block::kThreads != 0 && i >= kSize) break;
        float sum = 0.0F;
#pragma unroll
        for (int w = 0; w < Block::kWarps; ++w) sum += from[w * kSize + i];
        if (step + t >= at_.end || n >= d_state()) continue;
        const int is_dC = i % kRow >= Shape::kStates;
        if (work_.channel_blocks == 1) {
          const Sequence& to = is_dC ? work_.dC : work_.dB;
          static_cast<T*>(to.data)[at_.batch * to.batch_stride + (step + t) * to.step_stride + n] =
              from_float<T>(sum);
        } else {
          dBdC_part_[(2 * (step + t) + is_dC) * d_state() + n] = sum;
        }
      }
    }
  }

  /// How many channels of item i of the tile at `step` this lane stores.
  template <bool kPlain>
  __device__ __forceinline__ int left_of(int step, int i) const {
    if (!item_.owned_by(lane_)) return 0;
    const int token = item_.token + i * Block::kSumTokens;
    return kPlain ? kWidth : step + token < at_.end ? item_.left : 0;
  }

  /// du and ddelta of an item, and the sums for ddelta_bias.
  template <bool kPlain>
  __device__ __forceinline__ void finish(int step, int i) {
    const BackwardKept<kWidth> kept = mine_.kept[i][lane_];
    const int first = lane_ / Shape::kLanes * Shape::kLanes;
    const float* parts =
        &mine_.parts
             .ddt_Bg[item_.token][first * 2 * Shape::kPerLane + item_.channel % Shape::kPerLane];
    float ddt[kWidth], Bg[kWidth], du[kWidth], ddelta[kWidth];
#pragma unroll
    for (int lane = 0; lane < Shape::kLanes; ++lane) {
      float part[2 * kWidth];
      if constexpr (kWidth == Shape::kPerLane) {
        load_pack<float, 2 * kWidth>(parts + lane * 2 * Shape::kPerLane, part);
      } else {
        part[0] = parts[lane * 2 * Shape::kPerLane];
        part[1] = parts[(lane * 2 + 1) * Shape::kPerLane];
      }
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        ddt[j] = lane == 0 ? part[j] : ddt[j] + part[j];
        Bg[j] = lane == 0 ? part[kWidth + j] : Bg[j] + part[kWidth + j];
      }
    }
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      du[j] = fmaf(kept.dt[j], Bg[j], kept.D_dy[j]);
      ddelta[j] = fmaf(ddt[j], kept.dsoftplus[j], kept.u_dsoftplus[j] * Bg[j]);
      // A token that does not count gives exactly zero, whatever u holds.
      if (!kPlain && kept.dsoftplus[j] == 0.0F) ddelta[j] = 0.0F;
      dbias_[j] += ddelta[j];
    }
    const int ahead = i * Block::kSumTokens, left = left_of<kPlain>(step, i);
    store_some<T, kWidth>(du_.row(ahead), du, left, wide());
    store_some<T, kWidth>(ddelta_.row(ahead), ddelta, left, wide());
  }

  __device__ void leave() {
    const int64_t part = at_.batch * work_.n_chunks + at_.chunk;
    float* dA = work_.parts.dA + part * p_.d_inner * p_.d_state;
    if (kUsual || work_.vectors.states) {
      part_.store_rows(dA_, dA, p_);
    } else {
      part_.store(dA_, packed_state(dA, p_.d_inner, p_.d_state), p_, 0);
    }
    if (p_.dinitial_state.data != nullptr && at_.chunk == 0) {
      part_.store(ag_, p_.dinitial_state, p_, at_.batch);
    }
    // The lanes that have the same channels at other tokens.
    constexpr int kStride = Block::kOwners * (Shape::kPerLane / kWidth);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
#pragma unroll
      for (int lanes = kStride; lanes < Shape::kLanes; lanes *= 2) {
        dD_[j] += __shfl_xor_sync(~0U, dD_[j], lanes);
        dbias_[j] += __shfl_xor_sync(~0U, dbias_[j], lanes);
      }
      if (item_.token != 0 || j >= item_.left) continue;
      const int64_t channel = part * p_.d_inner + at_.channel + item_.channel + j;
      work_.parts.dD[channel] = dD_[j];
      work_.parts.ddelta_bias[channel] = dbias_[j];
    }
  }

  /// Tokens of a tile whose exp(dt A) are kept in registers for the way back: as many as find room.
  static constexpr int kKept = kUsual ? 4 : 1;

  const int warp_;
  RowWalk<T> du_, ddelta_, dz_;
  float* dBdC_part_;  // this sequence's and channel block's
  Lane A_;            // log2(e) A
  Lane ag_;           // a_{t+1} g_{t+1}
  Lane dA_ = {};
  float dD_[kWidth] = {}, dbias_[kWidth] = {};  // of the lane's items so far
};

/// Warps beyond d_inner walk along on zeros: the block sums together.
template <class Shape, class T, bool kUsual>
__global__ void __launch_bounds__(BackwardShape<Shape>::kThreads, BackwardShape<Shape>::kBlocks)
    selective_scan_backward_kernel(const __grid_constant__ SelectiveScanBackwardParams p,
                                   const __grid_constant__ BackwardWork work) {
  wait_for_stream();
  auto& shared = *dynamic_shared<BackwardShared<Shape, T>>();
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int channel_block = static_cast<int>(blockIdx.x) % work.channel_blocks;
  const ScanPlace at = place_of_warp<Shape, BackwardShape<Shape>::kWarps>(p, 0, work.n_chunks,
                                                                          work.chunk_length, warp);
  BackwardWarp<Shape, T, kUsual>(p, work, at, shared, channel_block, warp, lane).run();
}

}  // namespace dmamba::kernels
