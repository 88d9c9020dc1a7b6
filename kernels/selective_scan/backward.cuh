// The selective scan backward (equations: params.h), one warp for kChannels channels of a chunk.
//
//   g_t = C_t dy_t + a_{t+1} g_{t+1}                    a_t = exp(dt_t A), g_t the gradient of h_t
//   dC_t = sum_channels dy_t h_t,   dB_t = sum_channels dt_t u_t g_t
//   ddt_t = sum_states A a_t h_{t-1} g_t + u_t sum_states B_t g_t,   dA = sum_t dt_t a_t h_{t-1}
//   g_t du_t = D dy_t + dt_t sum_states B_t g_t,   dy = dout SiLU(z),   dz = dout y SiLU'(z)
//
// The block walks from the last token to the first, a tile at a time: forward from the checkpoint
// before it, with all h in registers, then back. dB and dC are summed over the channels of the
// block in a fixed order; what the blocks leave, and dA, dD and ddelta_bias of the sequences,
// gradients.cu sums. No atomics.
//
// The permutation. Summing dB and dC over a warp's groups halves what a lane holds round by round,
// and which half a lane keeps depends on the lane: two selects a value. So lanes hold their four
// states in different orders, register s for state s ^ permutation, and every lane keeps its first
// registers and sends the others. B and C lie in shared memory in every order.
#pragma once

#include "kernels/selective_scan/backward_input.cuh"

namespace dmamba::kernels {

/// kUsual: as in forward.cuh.
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
    part_.load_A(A_, p_, kUsual || work_.vectors.A);
    const bool last = at_.chunk + 1 == work_.n_chunks;
    part_.load(ag_,
               last ? p_.dlast_state : packed_state(work_.carries.state, p_.d_inner, p_.d_state),
               p_, last ? at_.batch : at_.batch * work_.n_chunks + at_.chunk);
    fetch_tile<false>(first_);
    for (int step = first_; step >= at_.begin; step -= kSteps) {
      const TileFlags flags{__ballot_sync(~0U, flag_ != 0)};
      const bool more = kAsksForMore || step > at_.begin;
      if (__all_sync(~0U, flags.plain() && all_channels_ && more)) {
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
  using Input::fetch_tile;
  using Input::first_;
  using Input::flag_;
  using Input::has_z;
  using Input::item_;
  using Input::lane_;
  using Input::load_start;
  using Input::order_states;
  using Input::p_;
  using Input::part_;
  using Input::shared_;
  using Input::slots_;
  using Input::states_of;
  using Input::tokens_;
  using Input::wide;
  using Input::work_;

  /// What a lane keeps of its items from before the walk until their sums are there.
  struct Item {
    Pack<T, kWidth> u;
    float dt[kWidth], dy[kWidth];
    float dsoftplus[kWidth];  // d dt / d delta; 0 where a token doesn't count
    float dz_factor[kWidth];  // dout SiLU'(z)
  };

  __device__ RowWalk<T> results(const Sequence& s) const {
    return {s, at_.batch, first_ + item_.token, at_.channel + item_.channel};
  }

  /// Whether plain tiles ask if another is to come, and so include the sequence's first: 4 % faster
  /// with bf16, 5 % slower with fp32.
  static constexpr bool kAsksForMore = sizeof(T) == 2;

  /// kPlain: all tokens count, no segment starts, all channels are there.
  template <bool kPlain>
  __device__ __forceinline__ void tile(int step, TileFlags flags) {
    Item items[kItems];
    wait_for_copies();
    __syncwarp();
    if (kUsual || p_.delta_softplus) {
      prepare<kPlain, true>(flags, items);
    } else {
      prepare<kPlain, false>(flags, items);
    }
    order_states<kPlain>(flags);
    float h[kSteps + 1][Shape::kPerLane][kStatesPerLane];
    load_start(step, h[0]);
    __syncthreads();
    sum_over_warps(step + kSteps);
    if ((kPlain && !kAsksForMore) || step > at_.begin) fetch_tile<kPlain>(step - kSteps);
    walk<kPlain>(step, flags, h, items);
  }

  /// What the walk needs.
  template <bool kPlain, bool kSoftplus>
  __device__ __forceinline__ void prepare(TileFlags flags, Item (&items)[kItems]) {
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      Item& item = items[i];
      const int token = item_.token + i * Block::kSumTokens;
      const bool counts = kPlain || flags.counts(token);
      float u[kWidth], delta[kWidth], dt_dtu[2 * kWidth];
      item.u = slots_.u[i][lane_];
      item.u.get(u);
      slots_.delta[i][lane_].get(delta);
      slots_.dout[i][lane_].get(item.dy);
      if (has_z()) {
        float z[kWidth];
        slots_.z[i][lane_].get(z);
#pragma unroll
        for (int j = 0; j < kWidth; ++j) {
          const float s = sigmoid(z[j]);
          item.dz_factor[j] = item.dy[j] * s * fmaf(z[j], 1.0F - s, 1.0F);
          item.dy[j] *= z[j] * s;
        }
      }
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        const float x = delta[j] + bias_[j];
        const Softplus step = kSoftplus ? softplus_with_derivative(x) : Softplus{x, 1.0F};
        item.dsoftplus[j] = counts ? step.derivative : 0.0F;
        item.dt[j] = counts ? step.value : 0.0F;
        dt_dtu[2 * j] = item.dt[j];
        dt_dtu[2 * j + 1] = counts ? step.value * u[j] : 0.0F;
      }
      if (Block::kOwners == 1 || lane_ % Block::kOwners == 0) {
        const int group = lane_ / Shape::kLanes, c = item_.channel % Shape::kPerLane;
        store_pack<float, 2 * kWidth>(&tokens_[token].dt_dtu[group][2 * c], dt_dtu);
        store_pack<float, kWidth>(&tokens_[token].dy[group][c], item.dy);
      }
    }
  }

  /// One tile forward, with h kept, then backward; `h[0]` is before it.
  template <bool kPlain>
  __device__ __forceinline__ void walk(int step, TileFlags flags,
                                       float (&h)[kSteps + 1][Shape::kPerLane][kStatesPerLane],
                                       const Item (&items)[kItems]) {
    constexpr int kPer = Shape::kPerLane, kBatch = Block::kSumTokens;
    const int group = lane_ / Shape::kLanes;
#pragma unroll
    for (int t = 0; t < kSteps; ++t) {
      float x[2 * kPer], B[kStatesPerLane];
      load_pack<float, 2 * kPer>(tokens_[t].dt_dtu[group], x);
      load_pack<float, kStatesPerLane>(states_of(0, t), B);
      const float forget = kPlain ? 0.0F : flags.forget(t);
#pragma unroll
      for (int c = 0; c < kPer; ++c) {
#pragma unroll
        for (int s = 0; s < kStatesPerLane; ++s) {
          const float a = decay<kPlain>(x[2 * c], A_[c][s], forget);
          h[t + 1][c][s] = fmaf(a, h[t][c][s], x[2 * c + 1] * B[s]);
        }
      }
    }
#pragma unroll
    for (int b = kItems - 1; b >= 0; --b) {
      float ddt[Block::kSums], Bg[Block::kSums], y[Block::kSums];
#pragma unroll
      for (int i = kBatch - 1; i >= 0; --i) {
        const int t = b * kBatch + i;
        back<kPlain>(t, kPlain ? 0.0F : flags.forget(t), h[t], h[t + 1], &ddt[i * kPer],
                     &Bg[i * kPer], &y[i * kPer]);
      }
      reduce_scatter<Shape::kLanes, 1, Block::kSums>(ddt, lane_);
      reduce_scatter<Shape::kLanes, 1, Block::kSums>(Bg, lane_);
      reduce_scatter<Shape::kLanes, 1, Block::kSums>(y, lane_);
      finish<kPlain>(step, b, items[b], ddt, Bg, y);
    }
    du_.move(-kSteps);
    ddelta_.move(-kSteps);
    dz_.move(-kSteps);
  }

  template <bool kPlain>
  __device__ __forceinline__ static float decay(float dt, float A, float forget) {
    return exp2_fast(kPlain ? dt * A : fmaf(dt, A, forget));
  }

  /// One token of the walk back: `before` and `after` are h around it.
  template <bool kPlain>
  __device__ __forceinline__ void back(int t, float forget, const Lane& before, const Lane& after,
                                       float* ddt, float* Bg, float* y) {
    constexpr int kPer = Shape::kPerLane;
    const int group = lane_ / Shape::kLanes;
    float x[2 * kPer], dy[kPer], B[kStatesPerLane], C[kStatesPerLane];
    float dB[kStatesPerLane], dC[kStatesPerLane];
    load_pack<float, 2 * kPer>(tokens_[t].dt_dtu[group], x);
    load_pack<float, kPer>(tokens_[t].dy[group], dy);
    load_pack<float, kStatesPerLane>(states_of(0, t), B);
    load_pack<float, kStatesPerLane>(states_of(1, t), C);
#pragma unroll
    for (int c = 0; c < kPer; ++c) {
#pragma unroll
      for (int s = 0; s < kStatesPerLane; ++s) {
        const float g = fmaf(dy[c], C[s], ag_[c][s]);
        dB[s] = c == 0 ? x[1] * g : fmaf(x[2 * c + 1], g, dB[s]);
        dC[s] = c == 0 ? dy[0] * after[0][s] : fmaf(dy[c], after[c][s], dC[s]);
        Bg[c] = s == 0 ? B[0] * g : fmaf(B[s], g, Bg[c]);
        y[c] = s == 0 ? C[0] * after[c][0] : fmaf(C[s], after[c][s], y[c]);
        ag_[c][s] = decay<kPlain>(x[2 * c], A_[c][s], forget) * g;
        const float ahg = ag_[c][s] * before[c][s];
        dA_[c][s] = fmaf(x[2 * c], ahg, dA_[c][s]);
        ddt[c] = s == 0 ? A_[c][0] * ahg : fmaf(A_[c][s], ahg, ddt[c]);
      }
    }
    sum_over_groups(t, dB, dC);
  }

  /// Sums dB and dC over the warp's channels and leaves them in shared memory. After the rounds of
  /// the permutation a lane has the first kKept registers of each.
  __device__ __forceinline__ void sum_over_groups(int t, float (&dB)[kStatesPerLane],
                                                  float (&dC)[kStatesPerLane]) {
    constexpr int kRounds = Block::kPermutationBits, kKept = kStatesPerLane >> kRounds;
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
      const int half = kStatesPerLane >> (round + 1);
#pragma unroll
      for (int s = 0; s < half; ++s) {
        dB[s] += __shfl_xor_sync(~0U, dB[s + half], Shape::kLanes << round);
        dC[s] += __shfl_xor_sync(~0U, dC[s + half], Shape::kLanes << round);
      }
    }
    float* to = &shared_.dBdC[buffer_][warp_][t][part_.state];
    if constexpr (Shape::kGroups >= 8) {
      float sums[2] = {dB[0], dC[0]};
      const int matrix = reduce_scatter<Shape::kGroups / 4, 4 * Shape::kLanes, 2>(sums, lane_);
      to[matrix * Shape::kStates + part_.permutation] = sums[0];
    } else {
#pragma unroll
      for (int s = 0; s < kKept; ++s) {
        to[s ^ part_.permutation] = dB[s];
        to[Shape::kStates + (s ^ part_.permutation)] = dC[s];
      }
    }
  }

  /// dB and dC of the block's channels for the tile before in work, which began at `step`.
  __device__ __forceinline__ void sum_over_warps(int step) {
    if (step >= at_.end) return;  // none yet
    constexpr int kRow = Block::kRow, kSize = kSteps * kRow;
    const float* from = &shared_.dBdC[buffer_ ^ 1][0][0][0];
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
      } else if (kUsual) {
        dBdC_part_[step * kRow + i] = sum;
      } else {
        dBdC_part_[(2 * (step + t) + is_dC) * d_state() + n] = sum;
      }
    }
  }

  /// du, ddelta and dz of item i of the tile at `step`, and the sums for dD and ddelta_bias.
  template <bool kPlain>
  __device__ __forceinline__ void finish(int step, int i, const Item& item, const float* ddt,
                                         const float* Bg, const float* y) {
    const int ahead = i * Block::kSumTokens;
    const int left = kPlain ? kWidth : step + item_.token + ahead < at_.end ? item_.left : 0;
    float u[kWidth], du[kWidth], ddelta[kWidth], dz[kWidth];
    item.u.get(u);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      du[j] = fmaf(D_[j], item.dy[j], item.dt[j] * Bg[j]);
      ddelta[j] = fmaf(kLn2, ddt[j], u[j] * Bg[j]) * item.dsoftplus[j];
      // A token that does not count gives exactly zero, whatever u holds.
      if (!kPlain && item.dsoftplus[j] == 0.0F) ddelta[j] = 0.0F;
      dD_[j] = fmaf(item.dy[j], u[j], dD_[j]);
      dbias_[j] += ddelta[j];
      dz[j] = fmaf(D_[j], u[j], y[j]) * item.dz_factor[j];
    }
    store_some<T, kWidth>(du_.row(ahead), du, left, wide());
    store_some<T, kWidth>(ddelta_.row(ahead), ddelta, left, wide());
    if (has_z()) store_some<T, kWidth>(dz_.row(ahead), dz, left, wide());
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

  const int warp_;
  RowWalk<T> du_, ddelta_, dz_;
  float* dBdC_part_;                           // this sequence's and channel block's
  float A_[Shape::kPerLane][kStatesPerLane];   // log2(e) A
  float ag_[Shape::kPerLane][kStatesPerLane];  // a_{t+1} g_{t+1}
  float dA_[Shape::kPerLane][kStatesPerLane] = {};
  float dD_[kWidth] = {}, dbias_[kWidth] = {};  // of the lane's items so far
};

/// Warps beyond d_inner walk along on zeros: the block sums together.
template <class Shape, class T, bool kUsual>
__global__ void __launch_bounds__(BackwardShape<Shape>::kThreads, BackwardShape<Shape>::kBlocks)
    selective_scan_backward_kernel(const __grid_constant__ SelectiveScanBackwardParams p,
                                   const __grid_constant__ BackwardWork work) {
  wait_for_stream();
  extern __shared__ __align__(16) unsigned char memory[];
  auto& shared = *reinterpret_cast<BackwardShared<Shape, T>*>(memory);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int channel_block = static_cast<int>(blockIdx.x) % work.channel_blocks;
  const ScanPlace at =
      place_of_warp<Shape, BackwardShape<Shape>::kWarps>(p, work.n_chunks, work.chunk_length, warp);
  BackwardWarp<Shape, T, kUsual>(p, work, at, shared, channel_block, warp, lane).run();
}

}  // namespace dmamba::kernels
