// The input side of the backward scan: rows of activations, B, C and checkpoints on their way from
// memory to where the walk reads them.
#pragma once

#include "kernels/selective_scan/backward_shared.cuh"
#include "kernels/selective_scan/backward_token.cuh"

namespace dmamba::kernels {

/// A warp's input, and with the block's other warps that of B and C. A tile's is sent for while the
/// one after it is walked, by asynchronous copies to shared memory: loads into registers share
/// their scoreboard with whatever else the walk waits for, and so are waited for too early.
template <class Shape, class T, bool kUsual>
class BackwardInput {
 public:
  using Block = BackwardShape<Shape>;
  using Shared = BackwardShared<Shape, T>;
  using Lane = ScanLane<Shape>;
  static constexpr int kWidth = Block::kWidth, kItems = Block::kItems, kSteps = Shape::kSteps;

  __device__ BackwardInput(const SelectiveScanBackwardParams& p, const BackwardWork& work,
                           const ScanPlace& at, Shared& shared, int warp, int lane)
      : p_(p),
        work_(work),
        at_(at),
        shared_(shared),
        mine_(shared.warps[warp]),
        lane_(lane),
        item_(p, at, lane),
        part_{at.channel + lane / Shape::kLanes * Shape::kPerLane,
              lane % Shape::kLanes * kStatesPerLane},
        first_((at.end - 1) / kSteps * kSteps),
        all_channels_(at.channel + Shape::kChannels <= p.d_inner),
        reader_(FlagReader::of<Shape>(p, at.batch, lane)),
        input_token_(lane / Shape::kPacks),
        input_channel_(lane % Shape::kPacks * Shape::kWidth),
        u_(inputs(p.u)),
        delta_(inputs(p.delta)),
        z_(inputs(p.z)),
        dout_(inputs(p.dout)),
        out_(inputs(p.out)) {
    load_channels(bias_, p.delta_bias, at.channel + item_.channel, item_.left);
    load_channels(D_, p.D, at.channel + item_.channel, item_.left);
    const int64_t n_checkpoints = (p.length - 1) / kSteps;
    start_ =
        static_cast<const T*>(p.checkpoints) +
        ((at.batch * n_checkpoints + first_ / kSteps - 1) * p.d_inner + part_.channel) * d_state() +
        part_.state;
  }

 protected:
  __device__ bool has_z() const { return kUsual || p_.z.data != nullptr; }
  __device__ bool wide() const { return kUsual || work_.vectors.channels; }
  __device__ int d_state() const { return kUsual ? Shape::kStates : static_cast<int>(p_.d_state); }

  /// Sends for the tile at `step`; kWhole: all its tokens and channels are there.
  template <bool kWhole>
  __device__ __forceinline__ void fetch_tile(int step) {
    send_rows<kWhole>(mine_.u, u_, step);
    send_rows<kWhole>(mine_.delta, delta_, step);
    if (has_z()) send_rows<kWhole>(mine_.z, z_, step);
    if (has_z()) send_rows<kWhole>(mine_.out, out_, step);
    send_rows<kWhole>(mine_.dout, dout_, step);
    flag_ = reader_.load(step, kWhole || step + lane_ % kSteps < at_.end);
    for_state_packs([&](int k, int matrix, int t, int n) {
      const Sequence& s = matrix == 0 ? p_.B : p_.C;
      const T* row = static_cast<const T*>(s.data) + at_.batch * s.batch_stride +
                     (step + t) * s.step_stride + n;
      const int left = kWhole || step + t < at_.end ? d_state() - n : 0;
      send<kStatesPerLane>(shared_.states[k][threadIdx.x], row, left,
                           kUsual || work_.vectors.states);
    });
#pragma unroll
    for (int c = 0; c < Shape::kPerLane; ++c) {
      const bool inside = step > 0 && (kWhole || part_.channel + c < p_.d_inner);
      const int left = inside ? d_state() - part_.state : 0;
      send<kStatesPerLane>(mine_.start[c][lane_], start_ + c * d_state(), left,
                           d_state() % kStatesPerLane == 0);
    }
    start_ -= p_.d_inner * d_state();
  }

  /// The packs of B and C that this thread has brought.
  struct States {
    Pack<T, kStatesPerLane> packs[Block::kMyPacks];
  };
  __device__ __forceinline__ States load_states() const {
    States states;
#pragma unroll
    for (int k = 0; k < Block::kMyPacks; ++k) states.packs[k] = shared_.states[k][threadIdx.x];
    return states;
  }

  /// B and C in fp32; zeros for B where a token does not count.
  template <bool kPlain>
  __device__ __forceinline__ void widen_states(const States& states, TileFlags flags) {
    for_state_packs([&](int k, int matrix, int t, int n) {
      float v[kStatesPerLane];
      states.packs[k].get(v);
      const bool hidden = !kPlain && matrix == 0 && !flags.counts(t);
#pragma unroll
      for (int s = 0; s < kStatesPerLane; ++s) v[s] = hidden ? 0.0F : v[s];
      store_pack<float, kStatesPerLane>(&shared_.BC[buffer_][matrix][t][n], v);
    });
  }

  /// h before the tile at `step`: a checkpoint, or the initial state.
  __device__ __forceinline__ void load_start(int step, Lane& h) const {
    if (step == 0) {
      part_.load(h, p_.initial_state, p_, at_.batch);
      return;
    }
#pragma unroll
    for (int c = 0; c < Shape::kPerLane; ++c) mine_.start[c][lane_].get(h[c]);
  }

  const SelectiveScanBackwardParams& p_;
  const BackwardWork& work_;
  const ScanPlace& at_;
  Shared& shared_;
  BackwardWarpShared<Shape, T>& mine_;
  const int lane_;
  const BackwardItem<Shape> item_;
  const ScanPart<Shape> part_;
  const int first_;          // token of the chunk's last tile, the first in work
  const bool all_channels_;  // of the warp lie within d_inner
  int buffer_ = 0;           // of what is two deep
  uint32_t flag_ = 0;
  float bias_[kWidth], D_[kWidth];  // zeros where absent

 private:
  /// Where the lane's packs of the last tile lie.
  __device__ RowWalk<const T> inputs(const Sequence& s) const {
    return {s, at_.batch, first_ + input_token_, at_.channel + input_channel_};
  }

  template <bool kWhole>
  __device__ __forceinline__ void send_rows(T (&to)[kSteps][Shape::kChannels],
                                            RowWalk<const T>& from, int step) {
#pragma unroll
    for (int i = 0; i < Shape::kItems; ++i) {
      const int ahead = i * Shape::kItemSteps, token = input_token_ + ahead;
      if (!Shape::kAllBusy && token >= kSteps) break;
      const int left = kWhole ? Shape::kWidth
                       : step + token < at_.end
                           ? static_cast<int>(p_.d_inner) - at_.channel - input_channel_
                           : 0;
      stage<Shape::kWidth>(&to[token][input_channel_], from.row(ahead), left, wide());
    }
    from.move(-kSteps);
  }

  template <int kCount, class Slot>
  __device__ __forceinline__ static void send(Slot& to, const T* from, int left, bool vector) {
    stage<kCount>(reinterpret_cast<T*>(&to), from, left, vector);
  }

  /// Calls f(k, matrix, token of the tile, first state) for the packs of B and C that this thread
  /// brings.
  template <class F>
  __device__ __forceinline__ void for_state_packs(const F& f) {
#pragma unroll
    for (int k = 0; k < Block::kMyPacks; ++k) {
      const int i = k * Block::kThreads + static_cast<int>(threadIdx.x);
      if (Block::kPacks % Block::kThreads != 0 && i >= Block::kPacks) break;
      f(k, i / (kSteps * Shape::kLanes), i / Shape::kLanes % kSteps,
        i % Shape::kLanes * kStatesPerLane);
    }
  }

  const FlagReader reader_;
  const int input_token_, input_channel_;
  RowWalk<const T> u_, delta_, z_, dout_, out_;
  const T* start_;  // the checkpoint before the next tile
};

}  // namespace dmamba::kernels
