// The selective scan forward (equations: params.h), one warp for kChannels channels of a chunk.
//
// Per channel and token d_state exponentials on the special-function units bound the time: the
// floor is batch d_inner L d_state / (16 a clock and multiprocessor). Bytes: u, delta, z read, out
// written, and d_state numbers of checkpoints every 8 tokens where a backward pass follows.
#pragma once

#include "kernels/common/launch.cuh"
#include "kernels/selective_scan/checkpoint.cuh"
#include "kernels/selective_scan/chunks.cuh"
#include "kernels/selective_scan/tile.cuh"

namespace dmamba::kernels {

/// Warps of a block; they share nothing but the cache.
template <class Shape>
constexpr int kForwardWarps = Shape::kStates <= 64 ? 4 : 2;

/// Blocks of a multiprocessor that the registers are shared out for: measured; at d_state 16 and
/// the usual arguments nothing spills.
template <class Shape, bool kStateOnly>
constexpr int kForwardBlocks = Shape::kStates > 16 ? 2
                               : kStateOnly        ? 5
                                                   : 4;

/// What a launch knows beside the parameters.
struct ForwardWork {
  int chunk_length, n_chunks;
  int n_checkpoints;  // 0 without
  ScanVectors vectors;
  ChunkCarries carries;
};

/// One warp's shared memory: two tiles, so that the next is prepared while slower lanes finish the
/// last.
template <class Shape>
struct alignas(16) ForwardShared {
  float dt_dtu[2][Shape::kSteps][Shape::kChannels][2];
  float B[2][Shape::kSteps][Shape::kStates];
  float C[2][Shape::kSteps][Shape::kStates];
  float y[2][Shape::kSteps][Shape::kChannels];
};

/// kUsual: what a Mamba block asks for (softplus, z, memory aligned for wide accesses), decided
/// when compiled. kStateOnly: the first pass over all chunks but the last, which leaves P and q and
/// no output.
template <class Shape, class T, bool kUsual, bool kStateOnly>
class ForwardWarp {
 public:
  __device__ ForwardWarp(const SelectiveScanForwardParams& p, const ForwardWork& work,
                         const ScanPlace& at, ForwardShared<Shape>& shared, int lane)
      : p_(p),
        work_(work),
        at_(at),
        shared_(shared),
        lane_(lane),
        item_(p, at, lane),
        part_{at.channel + lane / Shape::kLanes * Shape::kPerLane,
              lane % Shape::kLanes * kStatesPerLane},
        whole_until_(at.channel + Shape::kChannels <= p.d_inner ? at.end : 0),
        flags_(FlagReader::of<Shape>(p, at.batch, lane)),
        u_(items(p.u)),
        delta_(items(p.delta)),
        z_(items(p.z)),
        out_(p.out, at.batch, at.begin + item_.token, at.channel + item_.channel),
        B_(states(p.B)),
        C_(states(p.C)) {}

  __device__ void run() {
    fetch_input<false>(at_.begin);
    part_.load_A(A_, p_, kUsual || work_.vectors.A);
    load_channels(bias_, p_.delta_bias, at_.channel + item_.channel, item_.left);
    load_channels(D_, p_.D, at_.channel + item_.channel, item_.left);
    enter();
    int step = at_.begin;
    while (true) {
      tile<0>(step);
      step += Shape::kSteps;
      if (step >= at_.end) break;
      tile<1>(step);
      step += Shape::kSteps;
      if (step >= at_.end) break;
    }
    leave();
  }

 private:
  static constexpr int kWidth = Shape::kWidth;

  __device__ int d_state() const { return kUsual ? Shape::kStates : static_cast<int>(p_.d_state); }
  __device__ bool has_z() const { return kUsual || p_.z.data != nullptr; }
  /// Where the lane's items and packs of states begin.
  __device__ RowWalk<const T> items(const Sequence& s) const {
    return {s, at_.batch, at_.begin + item_.token, at_.channel + item_.channel};
  }
  __device__ RowWalk<const T> states(const Sequence& s) const {
    return {s, at_.batch, at_.begin + lane_ / Shape::kLanes,
            lane_ % Shape::kLanes * kStatesPerLane};
  }

  /// One tile; the input of the next arrives meanwhile.
  template <int kBuffer>
  __device__ __forceinline__ void tile(int step) {
    const TileFlags flags{__ballot_sync(~0U, flag_ != 0)};
    if (__all_sync(~0U, flags.plain() && step + 2 * Shape::kSteps <= whole_until_)) {
      tile<kBuffer, true>(step, flags);
    } else {
      tile<kBuffer, false>(step, flags);
    }
  }

  /// kPlain: all tokens of this tile count and start no segment, and all of the next one is there.
  template <int kBuffer, bool kPlain>
  __device__ __forceinline__ void tile(int step, TileFlags flags) {
    prepare<kBuffer, kPlain>(flags);
    if (kPlain || step + Shape::kSteps < at_.end) fetch_input<kPlain>(step + Shape::kSteps);
    __syncwarp();
    walk<kBuffer, kPlain>(flags);
    if constexpr (!kStateOnly) keep_checkpoint(step + Shape::kSteps);
    __syncwarp();
    if constexpr (!kStateOnly) finish<kBuffer, kPlain>(step);
  }

  /// Loads what prepare needs of the tile at `step`, zeros beyond the end, and moves on. kWhole:
  /// all of it is there.
  template <bool kWhole>
  __device__ __forceinline__ void fetch_input(int step) {
    const bool wide = kUsual || work_.vectors.channels,
               wide_states = kUsual || work_.vectors.states;
#pragma unroll
    for (int i = 0; i < Shape::kItems; ++i) {
      const int ahead = i * Shape::kItemSteps;
      const bool inside = item_.busy && (kWhole || step + item_.token + ahead < at_.end);
      const int left = !inside ? 0 : kWhole ? kWidth : item_.left;
      u_next_[i] = fetch<kWidth, kUsual>(u_.row(ahead), left, wide);
      delta_next_[i] = fetch<kWidth, kUsual>(delta_.row(ahead), left, wide);
      if (!kStateOnly && has_z()) z_next_[i] = fetch<kWidth, kUsual>(z_.row(ahead), left, wide);
    }
#pragma unroll
    for (int i = 0; i < Shape::kStateItems; ++i) {
      const int ahead = i * (32 / Shape::kLanes), token = lane_ / Shape::kLanes + ahead;
      const bool inside =
          (Shape::kAllBusyStates || token < Shape::kSteps) && (kWhole || step + token < at_.end);
      const int left = inside ? d_state() - lane_ % Shape::kLanes * kStatesPerLane : 0;
      B_next_[i] = fetch<kStatesPerLane, kUsual>(B_.row(ahead), left, wide_states);
      if constexpr (!kStateOnly) {
        C_next_[i] = fetch<kStatesPerLane, kUsual>(C_.row(ahead), left, wide_states);
      }
    }
    flag_ = flags_.load(step, kWhole || step + lane_ % Shape::kSteps < at_.end);
    u_.move(Shape::kSteps);
    delta_.move(Shape::kSteps);
    if constexpr (!kStateOnly) z_.move(Shape::kSteps);
    B_.move(Shape::kSteps);
    if constexpr (!kStateOnly) C_.move(Shape::kSteps);
  }

  /// The state that enters the chunk.
  __device__ void enter() {
    if (!kStateOnly && at_.chunk > 0) {
      part_.load(h_, packed_state(work_.carries.state, p_.d_inner, p_.d_state), p_,
                 at_.batch * work_.n_chunks + at_.chunk);
    } else {
      part_.load(h_, kStateOnly ? StateView{} : p_.initial_state, p_, at_.batch);
    }
    if constexpr (!kStateOnly) {
      const int64_t kept = at_.batch * work_.n_checkpoints + at_.begin / Shape::kSteps;
      checkpoint_ = static_cast<T*>(p_.checkpoints) +
                    (kept * p_.d_inner + part_.channel) * p_.d_state + part_.state;
    }
  }

  /// dt and dt u of every token and channel, B and C, in fp32. Tokens that don't count have dt = 0:
  /// they leave the state as it is, whatever u and B hold. kPlain: all count.
  template <int kBuffer, bool kPlain>
  __device__ __forceinline__ void prepare(TileFlags flags) {
#pragma unroll
    for (int i = 0; i < Shape::kItems; ++i) {
      if (!item_.busy) break;
      const bool counts = kPlain || flags.counts(item_.token + i * Shape::kItemSteps);
      float u[kWidth], dt[kWidth], dt_dtu[2 * kWidth];
      u_next_[i].get(u);
      delta_next_[i].get(dt);
      activate(dt);
      u_tile_[i] = u_next_[i];
      z_tile_[i] = z_next_[i];
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        dt_dtu[2 * j] = counts ? dt[j] : 0.0F;
        dt_dtu[2 * j + 1] = counts ? dt[j] * u[j] : 0.0F;
      }
      float* to = &shared_.dt_dtu[kBuffer][0][0][0] + 2 * item_.index(i);
#pragma unroll
      for (int j = 0; j < 2 * kWidth; j += 4) {
        store_pack<float, 4>(to + j, reinterpret_cast<const float(&)[4]>(dt_dtu[j]));
      }
    }
#pragma unroll
    for (int i = 0; i < Shape::kStateItems; ++i) {
      const int item = lane_ + 32 * i;
      if (!Shape::kAllBusyStates && item >= Shape::kSteps * Shape::kLanes) break;
      float values[kStatesPerLane];
      B_next_[i].get(values);
      const bool counts = kPlain || flags.counts(lane_ / Shape::kLanes + i * (32 / Shape::kLanes));
#pragma unroll
      for (int s = 0; s < kStatesPerLane; ++s) values[s] = counts ? values[s] : 0.0F;
      store_pack<float, kStatesPerLane>(&shared_.B[kBuffer][0][0] + item * kStatesPerLane, values);
      if constexpr (!kStateOnly) {
        C_next_[i].get(values);
        store_pack<float, kStatesPerLane>(&shared_.C[kBuffer][0][0] + item * kStatesPerLane,
                                          values);
      }
    }
  }

  /// delta -> dt.
  __device__ __forceinline__ void activate(float (&x)[kWidth]) const {
#pragma unroll
    for (int j = 0; j < kWidth; ++j) x[j] += bias_[j];
    if (kUsual || p_.delta_softplus) {
#pragma unroll
      for (int j = 0; j < kWidth; ++j) x[j] = softplus(x[j]);
    }
  }

  /// The recurrence. y is summed over the lanes of a channel some tokens at a time.
  template <int kBuffer, bool kPlain>
  __device__ __forceinline__ void walk(TileFlags flags) {
    constexpr int kPer = Shape::kPerLane, kBatch = Shape::kSumTokens, kSums = Shape::kSums;
    constexpr int kMine = Shape::kSumsMine;
    constexpr int kRun = kMine < kPer ? kMine : kPer;  // neighbouring channels among my sums
    const int channel = lane_ / Shape::kLanes * kPer;
#pragma unroll 1
    for (int t0 = 0; t0 < Shape::kSteps; t0 += kBatch) {
      float y[kSums];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int t = t0 + i;
        float x[2 * kPer], B[kStatesPerLane], C[kStatesPerLane];
        load_pack<float, 2 * kPer>(shared_.dt_dtu[kBuffer][t][channel], x);
        load_pack<float, kStatesPerLane>(&shared_.B[kBuffer][t][part_.state], B);
        if constexpr (!kStateOnly) {
          load_pack<float, kStatesPerLane>(&shared_.C[kBuffer][t][part_.state], C);
        }
        if (!kPlain && flags.starts(t)) forget();
#pragma unroll
        for (int c = 0; c < kPer; ++c) {
          if constexpr (kStateOnly) dt_sum_[c] += x[2 * c];
#pragma unroll
          for (int s = 0; s < kStatesPerLane; ++s) {
            const float a = exp2_fast(fmaf(x[2 * c], A_[c][s], kExp2Shift));
            h_[c][s] = fmaf(a, h_[c][s], x[2 * c + 1] * B[s]);
            if constexpr (!kStateOnly) {
              float& sum = y[i * kPer + c];
              sum = s == 0 ? h_[c][s] * C[s] : fmaf(h_[c][s], C[s], sum);
            }
          }
        }
      }
      if constexpr (!kStateOnly) {
        const int first = reduce_scatter<Shape::kLanes, 1, kSums>(y, lane_);
#pragma unroll
        for (int j = 0; j < kMine; j += kRun) {
          if (lane_ % Shape::kSumOwners != 0) break;
          const int t = t0 + (first + j) / kPer, c = channel + (first + j) % kPer;
          store_pack<float, kRun>(&shared_.y[kBuffer][t][c],
                                  reinterpret_cast<const float(&)[kRun]>(y[j]));
        }
      }
    }
  }

  /// At a segment's start. Not by a factor of zero, which a state that is infinite survives as NaN.
  __device__ __forceinline__ void forget() {
#pragma unroll
    for (int c = 0; c < Shape::kPerLane; ++c) {
#pragma unroll
      for (int s = 0; s < kStatesPerLane; ++s) h_[c][s] = 0.0F;
    }
    if constexpr (kStateOnly) factor_ = kForgets;
  }

  /// out = (y + D u) SiLU(z), for the tile at `step`.
  template <int kBuffer, bool kWhole>
  __device__ __forceinline__ void finish(int step) {
#pragma unroll
    for (int i = 0; i < Shape::kItems; ++i) {
      const int ahead = i * Shape::kItemSteps;
      const bool inside = item_.busy && (kWhole || step + item_.token + ahead < at_.end);
      float y[kWidth], u[kWidth], z[kWidth];
      load_pack<float, kWidth>(&shared_.y[kBuffer][0][0] + (item_.busy ? item_.index(i) : 0), y);
      u_tile_[i].get(u);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) y[j] = fmaf(D_[j], u[j], y[j]);
      if (has_z()) {
        z_tile_[i].get(z);
#pragma unroll
        for (int j = 0; j < kWidth; ++j) y[j] *= z[j] * sigmoid(z[j]);
      }
      store_some<T, kWidth>(out_.row(ahead), y,
                            !inside  ? 0
                            : kWhole ? kWidth
                                     : item_.left,
                            kUsual || work_.vectors.channels);
    }
    out_.move(Shape::kSteps);
  }

  /// h after `tokens` tokens, where the backward pass wants it.
  __device__ __forceinline__ void keep_checkpoint(int tokens) {
    if (work_.n_checkpoints == 0 || tokens >= p_.length) return;
#pragma unroll
    for (int c = 0; c < Shape::kPerLane; ++c) {
      const int left = part_.channel + c < p_.d_inner ? d_state() - part_.state : 0;
      keep_states<T>(checkpoint_ + c * d_state(), h_[c], left,
                     kUsual || p_.d_state % kStatesPerLane == 0);
    }
    checkpoint_ += p_.d_inner * d_state();
  }

  __device__ void leave() {
    if constexpr (kStateOnly) {
      const int64_t index = at_.batch * work_.n_chunks + at_.chunk;
      part_.store(h_, packed_state(work_.carries.state, p_.d_inner, p_.d_state), p_, index);
#pragma unroll
      for (int c = 0; c < Shape::kPerLane; ++c) {
#pragma unroll
        for (int s = 0; s < kStatesPerLane; ++s) {
          h_[c][s] = factor_ * exp2_fast(dt_sum_[c] * A_[c][s]);
        }
      }
      part_.store(h_, packed_state(work_.carries.factor, p_.d_inner, p_.d_state), p_, index);
    } else if (p_.last_state.data != nullptr && at_.end == p_.length) {
      part_.store(h_, p_.last_state, p_, at_.batch);
    }
  }

  const SelectiveScanForwardParams& p_;
  const ForwardWork& work_;
  const ScanPlace& at_;
  ForwardShared<Shape>& shared_;
  const int lane_;
  const ScanItem<Shape> item_;
  const ScanPart<Shape> part_;
  const int whole_until_;  // tiles that end by here have all tokens and channels
  const FlagReader flags_;
  RowWalk<const T> u_, delta_, z_;
  RowWalk<T> out_;
  RowWalk<const T> B_, C_;
  float A_[Shape::kPerLane][kStatesPerLane];  // log2(e) A
  float h_[Shape::kPerLane][kStatesPerLane];
  float bias_[kWidth], D_[kWidth];
  T* checkpoint_ = nullptr;
  Pack<T, kWidth> u_next_[Shape::kItems], delta_next_[Shape::kItems], z_next_[Shape::kItems] = {};
  Pack<T, kWidth> u_tile_[Shape::kItems], z_tile_[Shape::kItems];
  Pack<T, kStatesPerLane> B_next_[Shape::kStateItems], C_next_[Shape::kStateItems];
  uint32_t flag_;
  float dt_sum_[Shape::kPerLane] = {};  // first pass: P = factor exp(dt_sum A)
  float factor_ = 1.0F;
};

template <class Shape, class T, bool kUsual, bool kStateOnly>
__global__ void __launch_bounds__(32 * kForwardWarps<Shape>, kForwardBlocks<Shape, kStateOnly>)
    selective_scan_forward_kernel(const __grid_constant__ SelectiveScanForwardParams p,
                                  const __grid_constant__ ForwardWork work) {
  wait_for_stream();
  __shared__ ForwardShared<Shape> shared[kForwardWarps<Shape>];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const ScanPlace at = place_of_warp<Shape, kForwardWarps<Shape>>(
      p, 0, work.n_chunks - (kStateOnly ? 1 : 0), work.chunk_length, warp);
  if (at.channel >= p.d_inner) return;
  ForwardWarp<Shape, T, kUsual, kStateOnly>(p, work, at, shared[warp], lane).run();
}

}  // namespace dmamba::kernels
