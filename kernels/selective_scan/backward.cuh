// The selective scan backward (equations: params.h), one warp for kChannels channels of a chunk.
//
//   g_t = C_t dy_t + a_{t+1} g_{t+1}                    a_t = exp(dt_t A), g_t the gradient of h_t
//   dC_t = sum_channels dy_t h_t,   dB_t = sum_channels dt_t u_t g_t
//   ddt_t = sum_states A a_t h_{t-1} g_t + u_t sum_states B_t g_t,   dA = sum_t dt_t a_t h_{t-1}
//   g_t du_t = D dy_t + dt_t sum_states B_t g_t,   dy = dout SiLU(z),   dz = dout y SiLU'(z)
//
// The block walks from the last token to the first, an interval between checkpoints of h at a time:
// kTiles tiles, the last first. h and a of the tile in work stand in registers; with two tiles h is
// walked twice over the first. dB and dC are summed over the channels of the block in a fixed
// order; what the blocks leave, and dA, dD and ddelta_bias of the sequences, gradients.cu sums. No
// atomics.
//
// The permutation. Summing dB and dC over a warp's groups halves what a lane holds round by round,
// and which half a lane keeps depends on the lane: two selects a value. So lanes hold their four
// states in different orders, register s for state s ^ permutation, and every lane keeps its first
// registers and sends the others. B and C lie in shared memory in every order.
#pragma once

#include "kernels/selective_scan/backward_input.cuh"

namespace dmamba::kernels {

/// kUsual: as in forward.cuh.
template <class Shape, class T, int kTiles, bool kUsual>
class BackwardWarp : BackwardInput<Shape, T, kTiles, kUsual> {
  using Input = BackwardInput<Shape, T, kTiles, kUsual>;
  using Input::kTokens;
  using Input::kWidth;
  using typename Input::Block;
  using typename Input::Lane;
  using typename Input::Shared;

 public:
  __device__ BackwardWarp(const SelectiveScanBackwardParams& p, const BackwardWork& work,
                          const ScanPlace& at, Shared& shared, int channel_block, int warp,
                          int lane)
      : Input(p, work, at, shared, warp, lane), warp_(warp) {
    const int64_t part = channel_block * p.batch + at.batch;
    dBdC_part_ = work.parts.dBdC + part * p.length * 2 * p.d_state;
  }

  __device__ void run() {
    part_.load_A(A_, p_, kUsual || work_.vectors.A);
    load_vectors();
    find_rows();
    const bool last = at_.chunk + 1 == work_.n_chunks;
    part_.load(ag_,
               last ? p_.dlast_state : packed_state(work_.carries.state, p_.d_inner, p_.d_state),
               p_, last ? at_.batch : at_.batch * work_.n_chunks + at_.chunk);
    int step = (at_.end - 1) / kTokens * kTokens;
    stage_interval(step);
    while (true) {
      const int tiles = (min(at_.end - step, kTokens) + Shape::kSteps - 1) / Shape::kSteps;
      TileFlags flags[kTiles];
#pragma unroll
      for (int k = 0; k < kTiles; ++k) flags[k].bits = __ballot_sync(~0U, flags_[k] != 0);
      wait_for_copies();
      __syncwarp();
#pragma unroll
      for (int k = 0; k < kTiles; ++k) {
        if (kUsual || p_.delta_softplus) {
          prepare<true>(flags[k], k * Shape::kSteps);
        } else {
          prepare<false>(flags[k], k * Shape::kSteps);
        }
      }
      order_states(flags);
#pragma unroll 1
      for (int k = tiles - 1; k >= 0; --k) {
        __syncthreads();
        sum_over_warps(step + (k + 1) * Shape::kSteps);
        if (k == tiles - 1 && step > at_.begin) stage_interval(step - kTokens);
        Lane h;
        load_start(step, h);
        if constexpr (kTiles > 1) {
          if (k > 0) advance(flags[0], h);
        }
        walk(flags[kTiles > 1 && k > 0 ? 1 : 0], k * Shape::kSteps, h);
        __syncwarp();
        finish(k * Shape::kSteps, step);
        __syncwarp();
        tile_buffer_ ^= 1;
      }
      buffer_ ^= 1;
      if (step <= at_.begin) break;
      step -= kTokens;
    }
    __syncthreads();
    sum_over_warps(at_.begin);
    leave();
  }

 private:
  using Input::at_;
  using Input::buffer_;
  using Input::d_state;
  using Input::find_rows;
  using Input::flags_;
  using Input::has_z;
  using Input::item_;
  using Input::lane_;
  using Input::load_start;
  using Input::load_vectors;
  using Input::order_states;
  using Input::own_;
  using Input::p_;
  using Input::part_;
  using Input::row_of;
  using Input::shared_;
  using Input::stage_interval;
  using Input::states_of;
  using Input::work_;

  /// What the walk needs of the tile whose first token is `t0` of the interval.
  template <bool kSoftplus>
  __device__ __forceinline__ void prepare(TileFlags flags, int t0) {
#pragma unroll
    for (int i = 0; i < Shape::kItems; ++i) {
      if (!item_.busy) break;
      const bool counts = flags.counts(item_.token + i * Shape::kItemSteps);
      const int at = t0 * Shape::kChannels + item_.index(i);
      float u[kWidth], delta[kWidth], dy[kWidth], factor[kWidth], derivative[kWidth],
          dt_dtu[2 * kWidth], bias[kWidth];
      load_pack<T, kWidth>(&own_.u[0][0] + at, u);
      load_pack<T, kWidth>(&own_.delta[0][0] + at, delta);
      load_pack<T, kWidth>(&own_.dout[0][0] + at, dy);
      if (has_z()) {
        float z[kWidth];
        load_pack<T, kWidth>(&own_.z[0][0] + at, z);
#pragma unroll
        for (int j = 0; j < kWidth; ++j) {
          const float s = sigmoid(z[j]);
          factor[j] = dy[j] * s * fmaf(z[j], 1.0F - s, 1.0F);
          dy[j] *= z[j] * s;
        }
        store_pack<float, kWidth>(&own_.dz_factor[0][0] + at, factor);
      }
      load_pack<float, kWidth>(&own_.bias[item_.channel], bias);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        const float x = delta[j] + bias[j];
        const Softplus step = kSoftplus ? softplus_with_derivative(x) : Softplus{x, 1.0F};
        derivative[j] = counts ? step.derivative : 0.0F;
        dt_dtu[2 * j] = counts ? step.value : 0.0F;
        dt_dtu[2 * j + 1] = counts ? step.value * u[j] : 0.0F;
      }
#pragma unroll
      for (int j = 0; j < 2 * kWidth; j += 4) {
        store_pack<float, 4>(&own_.dt_dtu[0][0][0] + 2 * at + j,
                             reinterpret_cast<const float(&)[4]>(dt_dtu[j]));
      }
      store_pack<float, kWidth>(&own_.dy[0][0] + at, dy);
      store_pack<T, kWidth>(&own_.u_kept[0][0] + at, u);
      store_pack<float, kWidth>(&own_.dsoftplus[0][0] + at, derivative);
    }
  }

  /// h from before to after the interval's first tile.
  __device__ __forceinline__ void advance(TileFlags flags, Lane& h) const {
#pragma unroll
    for (int t = 0; t < Shape::kSteps; ++t) {
      float x[2 * Shape::kPerLane], B[kStatesPerLane];
      load_pack<float, 2 * Shape::kPerLane>(own_.dt_dtu[t][lane_ / Shape::kLanes * Shape::kPerLane],
                                            x);
      load_pack<float, kStatesPerLane>(states_of(0, t), B);
      const float forget = flags.forget(t);
#pragma unroll
      for (int c = 0; c < Shape::kPerLane; ++c) {
#pragma unroll
        for (int s = 0; s < kStatesPerLane; ++s) {
          const float a = exp2_fast(fmaf(x[2 * c], A_[c][s], forget));
          h[c][s] = fmaf(a, h[c][s], x[2 * c + 1] * B[s]);
        }
      }
    }
  }

  /// One tile forward, with h and a kept, then backward.
  __device__ __forceinline__ void walk(TileFlags flags, int t0, const Lane& start) {
    constexpr int kPer = Shape::kPerLane, kSteps = Shape::kSteps, kBatch = Shape::kSumTokens;
    float h[kSteps + 1][kPer][kStatesPerLane];
#pragma unroll
    for (int c = 0; c < kPer; ++c) {
#pragma unroll
      for (int s = 0; s < kStatesPerLane; ++s) h[0][c][s] = start[c][s];
    }
#pragma unroll
    for (int t = 0; t < kSteps; ++t) {
      float x[2 * kPer], B[kStatesPerLane];
      load_pack<float, 2 * kPer>(own_.dt_dtu[t0 + t][lane_ / Shape::kLanes * kPer], x);
      load_pack<float, kStatesPerLane>(states_of(0, t0 + t), B);
      const float forget = flags.forget(t);
#pragma unroll
      for (int c = 0; c < kPer; ++c) {
#pragma unroll
        for (int s = 0; s < kStatesPerLane; ++s) {
          const float a = exp2_fast(fmaf(x[2 * c], A_[c][s], forget));
          h[t + 1][c][s] = fmaf(a, h[t][c][s], x[2 * c + 1] * B[s]);
        }
      }
    }
#pragma unroll
    for (int b = kSteps / kBatch - 1; b >= 0; --b) {
      float ddt[Shape::kSums], Bg[Shape::kSums], y[Shape::kSums];
#pragma unroll
      for (int i = kBatch - 1; i >= 0; --i) {
        const int t = b * kBatch + i;
        back(t0 + t, flags.forget(t), h[t], h[t + 1], &ddt[i * kPer], &Bg[i * kPer], &y[i * kPer]);
      }
      spread(ddt, own_.ddt, b * kBatch);
      spread(Bg, own_.Bg, b * kBatch);
      spread(y, own_.y, b * kBatch);
    }
  }

  /// One token of the walk back: `before` and `after` are h around it.
  __device__ __forceinline__ void back(int t, float forget, const Lane& before, const Lane& after,
                                       float* ddt, float* Bg, float* y) {
    constexpr int kPer = Shape::kPerLane;
    float x[2 * kPer], dy[kPer], B[kStatesPerLane], C[kStatesPerLane];
    float dB[kStatesPerLane], dC[kStatesPerLane];
    load_pack<float, 2 * kPer>(own_.dt_dtu[t][lane_ / Shape::kLanes * kPer], x);
    load_pack<float, kPer>(&own_.dy[t][lane_ / Shape::kLanes * kPer], dy);
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
        ag_[c][s] = exp2_fast(fmaf(x[2 * c], A_[c][s], forget)) * g;
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
    float* to = &shared_.dBdC[tile_buffer_][warp_][t % Shape::kSteps][part_.state];
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

  /// Sums over a channel's lanes, some tokens at once, into shared memory.
  __device__ __forceinline__ void spread(float (&v)[Shape::kSums],
                                         float (&to)[Shape::kSteps][Shape::kChannels], int t0) {
    constexpr int kPer = Shape::kPerLane, kMine = Shape::kSumsMine;
    constexpr int kRun = kMine < kPer ? kMine : kPer;
    const int channel = lane_ / Shape::kLanes * kPer;
    const int first = reduce_scatter<Shape::kLanes, 1, Shape::kSums>(v, lane_);
#pragma unroll
    for (int i = 0; i < kMine; i += kRun) {
      store_pack<float, kRun>(&to[t0 + (first + i) / kPer][channel + (first + i) % kPer],
                              reinterpret_cast<const float(&)[kRun]>(v[i]));
    }
  }

  /// dB and dC of the block's channels for the last tile walked, which began at `step`.
  __device__ __forceinline__ void sum_over_warps(int step) {
    if (step >= at_.end) return;  // none yet
    constexpr int kRow = Block::kRow, kSize = Shape::kSteps * kRow;
    const float* from = &shared_.dBdC[tile_buffer_ ^ 1][0][0][0];
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

  /// du, ddelta and dz of a tile, and the sums for dD and ddelta_bias.
  __device__ __forceinline__ void finish(int t0, int step) {
    float D[kWidth], dD[kWidth], dbias[kWidth];
    load_pack<float, kWidth>(&own_.D[item_.channel], D);
    load_pack<float, kWidth>(own_.dD[lane_], dD);
    load_pack<float, kWidth>(own_.dbias[lane_], dbias);
#pragma unroll
    for (int i = 0; i < Shape::kItems; ++i) {
      const int token = step + t0 + item_.token + i * Shape::kItemSteps;
      if (!item_.busy || token >= at_.end) break;
      const int in_tile = item_.index(i), at = t0 * Shape::kChannels + in_tile;
      float u[kWidth], dy[kWidth], derivative[kWidth], ddt[kWidth], Bg[kWidth], du[kWidth];
      float dt_dtu[2 * kWidth];
      load_pack<T, kWidth>(&own_.u_kept[0][0] + at, u);
      load_pack<float, kWidth>(&own_.dy[0][0] + at, dy);
      load_pack<float, kWidth>(&own_.dsoftplus[0][0] + at, derivative);
      load_pack<float, kWidth>(&own_.ddt[0][0] + in_tile, ddt);
      load_pack<float, kWidth>(&own_.Bg[0][0] + in_tile, Bg);
#pragma unroll
      for (int j = 0; j < 2 * kWidth; j += 4) {
        load_pack<float, 4>(&own_.dt_dtu[0][0][0] + 2 * at + j,
                            reinterpret_cast<float(&)[4]>(dt_dtu[j]));
      }
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        du[j] = fmaf(D[j], dy[j], dt_dtu[2 * j] * Bg[j]);
        // A token that does not count gives exactly zero, whatever u holds.
        ddt[j] = derivative[j] == 0.0F ? 0.0F : fmaf(kLn2, ddt[j], u[j] * Bg[j]) * derivative[j];
        dD[j] = fmaf(dy[j], u[j], dD[j]);
        dbias[j] += ddt[j];
      }
      write(kDu, p_.du, token, du);
      write(kDdelta, p_.ddelta, token, ddt);
      if (has_z()) {
        float y[kWidth], factor[kWidth];
        load_pack<float, kWidth>(&own_.y[0][0] + in_tile, y);
        load_pack<float, kWidth>(&own_.dz_factor[0][0] + at, factor);
#pragma unroll
        for (int j = 0; j < kWidth; ++j) y[j] = fmaf(D[j], u[j], y[j]) * factor[j];
        write(kDz, p_.dz, token, y);
      }
    }
    store_pack<float, kWidth>(own_.dD[lane_], dD);
    store_pack<float, kWidth>(own_.dbias[lane_], dbias);
  }

  __device__ __forceinline__ void write(BackwardTensor tensor, const Sequence& to, int token,
                                        const float (&values)[kWidth]) const {
    store_some<T, kWidth>(row_of(tensor, to, token, at_.channel + item_.channel), values,
                          item_.left, kUsual || work_.vectors.channels);
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
    // A pack of channels belongs to the lanes with the same remainder.
    for (int c = lane_; c < Shape::kChannels; c += 32) {
      if (at_.channel + c >= p_.d_inner) break;
      float dD = 0.0F, dbias = 0.0F;
      for (int l = c / kWidth; l < 32; l += Shape::kPacks) {
        dD += own_.dD[l][c % kWidth];
        dbias += own_.dbias[l][c % kWidth];
      }
      work_.parts.dD[part * p_.d_inner + at_.channel + c] = dD;
      work_.parts.ddelta_bias[part * p_.d_inner + at_.channel + c] = dbias;
    }
  }

  const int warp_;
  float* dBdC_part_;                           // this sequence's and channel block's
  int tile_buffer_ = 0;                        // of dBdC
  float A_[Shape::kPerLane][kStatesPerLane];   // log2(e) A
  float ag_[Shape::kPerLane][kStatesPerLane];  // a_{t+1} g_{t+1}
  float dA_[Shape::kPerLane][kStatesPerLane] = {};
};

/// Warps beyond d_inner walk along on zeros: the block sums together.
template <class Shape, class T, int kTiles, bool kUsual>
__global__ void __launch_bounds__(BackwardShape<Shape>::kThreads, BackwardShape<Shape>::kBlocks)
    selective_scan_backward_kernel(const __grid_constant__ SelectiveScanBackwardParams p,
                                   const __grid_constant__ BackwardWork work) {
  extern __shared__ __align__(16) unsigned char memory[];
  auto& shared = *reinterpret_cast<BackwardShared<Shape, T, kTiles>*>(memory);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int channel_block = static_cast<int>(blockIdx.x) % work.channel_blocks;
  const ScanPlace at =
      place_of_warp<Shape, BackwardShape<Shape>::kWarps>(p, work.n_chunks, work.chunk_length, warp);
  BackwardWarp<Shape, T, kTiles, kUsual>(p, work, at, shared, channel_block, warp, lane).run();
}

}  // namespace dmamba::kernels
