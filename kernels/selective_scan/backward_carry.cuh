// The first pass of the backward scan over chunks: what gradient a chunk hands to the chunk before
// it,
//
//   ag_t = a_t (C_t dy_t + ag_{t+1}),   ag_end = 0,
//
// which leaves q = ag at the chunk's first token, and P = the product of the chunk's exp(dt A).
#pragma once

#include "kernels/selective_scan/chunks.cuh"
#include "kernels/selective_scan/tile.cuh"

namespace dmamba::kernels {

constexpr int kCarryWarps = 4;  // of a block; they share nothing but the cache

struct CarryWork {
  int chunk_length, n_chunks;
  ScanVectors vectors;
  ChunkCarries carries;
};

template <class Shape>
struct alignas(16) CarryShared {
  float dt_dy[Shape::kSteps][Shape::kChannels][2];
  float C[Shape::kSteps][Shape::kStates];
};

template <class Shape, class T>
class CarryWarp {
 public:
  __device__ CarryWarp(const SelectiveScanBackwardParams& p, const CarryWork& work,
                       const ScanPlace& at, CarryShared<Shape>& shared, int lane)
      : p_(p),
        work_(work),
        at_(at),
        shared_(shared),
        lane_(lane),
        item_(p, at, lane),
        part_{at.channel + lane / Shape::kLanes * Shape::kPerLane,
              lane % Shape::kLanes * kStatesPerLane},
        flags_(FlagReader::of<Shape>(p, at.batch, lane)),
        last_((at.end - 1) / kSteps * kSteps),
        delta_(items(p.delta)),
        dout_(items(p.dout)),
        z_(items(p.z)),
        C_(p.C, at.batch, last_ + lane / Shape::kLanes, lane % Shape::kLanes * kStatesPerLane) {}

  __device__ void run() {
    fetch_input(last_);
    part_.load_A(A_, p_, work_.vectors.A);
    load_channels(bias_, p_.delta_bias, at_.channel + item_.channel, item_.left);
    for (int step = last_; step >= at_.begin; step -= kSteps) {
      const TileFlags flags = prepare();
      if (step > at_.begin) fetch_input(step - kSteps);
      __syncwarp();
      walk(flags);
      __syncwarp();
    }
    leave();
  }

 private:
  static constexpr int kWidth = Shape::kWidth, kSteps = Shape::kSteps;

  __device__ RowWalk<const T> items(const Sequence& s) const {
    return {s, at_.batch, last_ + item_.token, at_.channel + item_.channel};
  }

  __device__ __forceinline__ void fetch_input(int step) {
#pragma unroll
    for (int i = 0; i < Shape::kItems; ++i) {
      const int ahead = i * Shape::kItemSteps;
      const int left = item_.busy && step + item_.token + ahead < at_.end ? item_.left : 0;
      const bool wide = work_.vectors.channels;
      delta_next_[i] = fetch<kWidth, false>(delta_.row(ahead), left, wide);
      dout_next_[i] = fetch<kWidth, false>(dout_.row(ahead), left, wide);
      if (p_.z.data != nullptr) z_next_[i] = fetch<kWidth, false>(z_.row(ahead), left, wide);
    }
#pragma unroll
    for (int i = 0; i < Shape::kStateItems; ++i) {
      const int ahead = i * (32 / Shape::kLanes), token = lane_ / Shape::kLanes + ahead;
      const bool inside = (Shape::kAllBusyStates || token < kSteps) && step + token < at_.end;
      const int n = lane_ % Shape::kLanes * kStatesPerLane;
      C_next_[i] = fetch<kStatesPerLane, false>(
          C_.row(ahead), inside ? static_cast<int>(p_.d_state) - n : 0, work_.vectors.states);
    }
    flag_ = flags_.load(step, step + lane_ % kSteps < at_.end);
    delta_.move(-kSteps);
    dout_.move(-kSteps);
    z_.move(-kSteps);
    C_.move(-kSteps);
  }

  /// dt and dy = dout SiLU(z), and C in fp32.
  __device__ __forceinline__ TileFlags prepare() {
    const TileFlags flags{__ballot_sync(~0U, flag_ != 0)};
#pragma unroll
    for (int i = 0; i < Shape::kItems; ++i) {
      if (!item_.busy) break;
      const bool counts = flags.counts(item_.token + i * Shape::kItemSteps);
      float dt[kWidth], dy[kWidth], z[kWidth], dt_dy[2 * kWidth];
      delta_next_[i].get(dt);
      dout_next_[i].get(dy);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) dt[j] += bias_[j];
      if (p_.delta_softplus) {
#pragma unroll
        for (int j = 0; j < kWidth; ++j) dt[j] = softplus(dt[j]);
      }
      if (p_.z.data != nullptr) {
        z_next_[i].get(z);
#pragma unroll
        for (int j = 0; j < kWidth; ++j) dy[j] *= z[j] * sigmoid(z[j]);
      }
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        dt_dy[2 * j] = counts ? dt[j] : 0.0F;
        dt_dy[2 * j + 1] = dy[j];
      }
#pragma unroll
      for (int j = 0; j < 2 * kWidth; j += 4) {
        store_pack<float, 4>(&shared_.dt_dy[0][0][0] + 2 * item_.index(i) + j,
                             reinterpret_cast<const float(&)[4]>(dt_dy[j]));
      }
    }
#pragma unroll
    for (int i = 0; i < Shape::kStateItems; ++i) {
      const int item = lane_ + 32 * i;
      if (!Shape::kAllBusyStates && item >= kSteps * Shape::kLanes) break;
      float values[kStatesPerLane];
      C_next_[i].get(values);
      store_pack<float, kStatesPerLane>(&shared_.C[0][0] + item * kStatesPerLane, values);
    }
    return flags;
  }

  __device__ __forceinline__ void walk(TileFlags flags) {
    constexpr int kPer = Shape::kPerLane;
#pragma unroll
    for (int t = kSteps - 1; t >= 0; --t) {
      float x[2 * kPer], C[kStatesPerLane];
      load_pack<float, 2 * kPer>(shared_.dt_dy[t][lane_ / Shape::kLanes * kPer], x);
      load_pack<float, kStatesPerLane>(&shared_.C[t][part_.state], C);
      const float forget = flags.forget(t);
      factor_ = flags.starts(t) ? kForgets : factor_;
#pragma unroll
      for (int c = 0; c < kPer; ++c) {
        dt_sum_[c] += x[2 * c];
#pragma unroll
        for (int s = 0; s < kStatesPerLane; ++s) {
          ag_[c][s] =
              exp2_fast(fmaf(x[2 * c], A_[c][s], forget)) * fmaf(x[2 * c + 1], C[s], ag_[c][s]);
        }
      }
    }
  }

  __device__ void leave() {
    const int64_t index = at_.batch * work_.n_chunks + at_.chunk;
    part_.store(ag_, packed_state(work_.carries.state, p_.d_inner, p_.d_state), p_, index);
#pragma unroll
    for (int c = 0; c < Shape::kPerLane; ++c) {
#pragma unroll
      for (int s = 0; s < kStatesPerLane; ++s) {
        ag_[c][s] = factor_ * exp2_fast(dt_sum_[c] * A_[c][s]);
      }
    }
    part_.store(ag_, packed_state(work_.carries.factor, p_.d_inner, p_.d_state), p_, index);
  }

  const SelectiveScanBackwardParams& p_;
  const CarryWork& work_;
  const ScanPlace& at_;
  CarryShared<Shape>& shared_;
  const int lane_;
  const ScanItem<Shape> item_;
  const ScanPart<Shape> part_;
  const FlagReader flags_;
  const int last_;  // first token of the chunk's last tile
  RowWalk<const T> delta_, dout_, z_, C_;
  float A_[Shape::kPerLane][kStatesPerLane];  // log2(e) A
  float ag_[Shape::kPerLane][kStatesPerLane] = {};
  float bias_[kWidth];
  Pack<T, kWidth> delta_next_[Shape::kItems], dout_next_[Shape::kItems], z_next_[Shape::kItems];
  Pack<T, kStatesPerLane> C_next_[Shape::kStateItems];
  uint32_t flag_;
  float dt_sum_[Shape::kPerLane] = {};
  float factor_ = 1.0F;
};

/// Blocks as in the forward pass; the first chunk has none to hand to.
template <class Shape, class T>
__global__ void __launch_bounds__(32 * kCarryWarps)
    selective_scan_carry_kernel(const __grid_constant__ SelectiveScanBackwardParams p,
                                const __grid_constant__ CarryWork work) {
  __shared__ CarryShared<Shape> shared[kCarryWarps];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const ScanPlace at =
      place_of_warp<Shape, kCarryWarps>(p, 1, work.n_chunks - 1, work.chunk_length, warp);
  if (at.channel >= p.d_inner) return;
  CarryWarp<Shape, T>(p, work, at, shared[warp], lane).run();
}

}  // namespace dmamba::kernels
