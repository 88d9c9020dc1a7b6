// The input side of the backward scan: rows of activations, B, C and checkpoints on their way from
// memory to where the walk reads them.
#pragma once

#include "kernels/selective_scan/backward_shared.cuh"

namespace dmamba::kernels {

/// A warp's input, and with the block's other warps that of B and C. An interval is sent for while
/// the one after it is walked.
template <class Shape, class T, int kTiles, bool kUsual>
class BackwardInput {
 public:
  using Block = BackwardShape<Shape>;
  using Shared = BackwardShared<Shape, T, kTiles>;
  using Lane = float[Shape::kPerLane][kStatesPerLane];
  static constexpr int kTokens = Shared::kTokens;
  static constexpr int kWidth = Shape::kWidth;

  __device__ BackwardInput(const SelectiveScanBackwardParams& p, const BackwardWork& work,
                           const ScanPlace& at, Shared& shared, int warp, int lane)
      : p_(p),
        work_(work),
        at_(at),
        shared_(shared),
        own_(shared.warps[warp]),
        lane_(lane),
        item_(p, at, lane),
        part_{at.channel + lane / Shape::kLanes * Shape::kPerLane,
              lane % Shape::kLanes * kStatesPerLane,
              Block::permutation(Block::order_of(lane / Shape::kLanes))},
        reader_(FlagReader::of<Shape>(p, at.batch, lane)) {}

 protected:
  __device__ bool has_z() const { return kUsual || p_.z.data != nullptr; }
  __device__ int d_state() const { return kUsual ? Shape::kStates : static_cast<int>(p_.d_state); }

  __device__ void load_vectors() {
    float v[1];
    for (int c = lane_; c < Shape::kChannels; c += 32) {
      load_channels(v, p_.delta_bias, at_.channel + c,
                    static_cast<int>(p_.d_inner) - at_.channel - c);
      own_.bias[c] = v[0];
      load_channels(v, p_.D, at_.channel + c, static_cast<int>(p_.d_inner) - at_.channel - c);
      own_.D[c] = v[0];
    }
#pragma unroll
    for (int j = 0; j < kWidth; ++j) own_.dD[lane_][j] = own_.dbias[lane_][j] = 0.0F;
    __syncwarp();
  }

  /// Leaves the addresses of the sequence's rows in shared memory: there are too many for
  /// registers.
  __device__ void find_rows() {
    const Sequence tensors[] = {p_.u, p_.delta, p_.z, p_.dout, p_.B, p_.C, p_.du, p_.ddelta, p_.dz};
    if (threadIdx.x == 0) {
#pragma unroll
      for (int i = 0; i < 9; ++i) {
        shared_.row[i] =
            static_cast<const T*>(tensors[i].data) + at_.batch * tensors[i].batch_stride;
      }
    }
    __syncthreads();
  }

  /// Token `token` of the sequence, `offset` elements into the row.
  __device__ __forceinline__ T* row_of(BackwardTensor tensor, const Sequence& s, int token,
                                       int offset) const {
    const void* row = shared_.row[tensor];
    const int bytes = static_cast<int>(s.step_stride) * static_cast<int>(sizeof(T));
    asm("mad.wide.s32 %0, %1, %2, %3;" : "=l"(row) : "r"(token), "r"(bytes), "l"(row));
    return static_cast<T*>(const_cast<void*>(row)) + offset;
  }

  /// Sends for an interval's input; it arrives while the interval after it is walked.
  __device__ __forceinline__ void stage_interval(int step) {
#pragma unroll
    for (int k = 0; k < kTiles; ++k) {
#pragma unroll
      for (int i = 0; i < Shape::kItems; ++i) {
        if (!item_.busy) break;
        const int token = step + k * Shape::kSteps + item_.token + i * Shape::kItemSteps;
        const int left = token < at_.end ? item_.left : 0;
        const int to = k * Shape::kSteps * Shape::kChannels + item_.index(i);
        stage_channels(own_.u, kU, p_.u, token, to, left);
        stage_channels(own_.delta, kDelta, p_.delta, token, to, left);
        stage_channels(own_.dout, kDout, p_.dout, token, to, left);
        if (has_z()) stage_channels(own_.z, kZ, p_.z, token, to, left);
      }
      const int first = step + k * Shape::kSteps;
      flags_[k] = reader_.load(first, first + lane_ % Shape::kSteps < at_.end);
    }
    stage_states(step);
    stage_start(step);
  }

  __device__ __forceinline__ void stage_channels(T (&to)[kTokens][Shape::kChannels],
                                                 BackwardTensor tensor, const Sequence& from,
                                                 int token, int index, int left) {
    stage<kWidth>(&to[0][0] + index, row_of(tensor, from, token, at_.channel + item_.channel), left,
                  kUsual || work_.vectors.channels);
  }

  /// Calls f(matrix, token of the interval, first state) for the packs of B and C that this thread
  /// stages and orders.
  template <class F>
  __device__ __forceinline__ void for_state_packs(const F& f) {
    constexpr int kPacks = 2 * kTokens * Shape::kLanes;
#pragma unroll
    for (int first = 0; first < kPacks; first += Block::kThreads) {
      const int i = first + static_cast<int>(threadIdx.x);
      if (kPacks % Block::kThreads != 0 && i >= kPacks) break;
      f(i / (kTokens * Shape::kLanes), i / Shape::kLanes % kTokens,
        i % Shape::kLanes * kStatesPerLane);
    }
  }

  __device__ __forceinline__ void stage_states(int step) {
    for_state_packs([&](int matrix, int t, int n) {
      const int left = step + t < at_.end ? d_state() - n : 0;
      stage<kStatesPerLane>(&shared_.raw[matrix][t][n],
                            row_of(matrix == 0 ? kB : kC, matrix == 0 ? p_.B : p_.C, step + t, n),
                            left, kUsual || work_.vectors.states);
    });
  }

  /// B and C in fp32 in every order of four states; zeros for B where a token does not count.
  __device__ __forceinline__ void order_states(const TileFlags (&flags)[kTiles]) {
    for_state_packs([&](int matrix, int t, int n) {
      float v[kStatesPerLane], w[kStatesPerLane];
      load_pack<T, kStatesPerLane>(&shared_.raw[matrix][t][n], v);
      const TileFlags& tile = flags[kTiles > 1 && t >= Shape::kSteps ? 1 : 0];
      const bool hidden = matrix == 0 && !tile.counts(t % Shape::kSteps);
#pragma unroll
      for (int s = 0; s < kStatesPerLane; ++s) v[s] = hidden ? 0.0F : v[s];
#pragma unroll
      for (int order = 0; order < Block::kOrders; ++order) {
#pragma unroll
        for (int s = 0; s < kStatesPerLane; ++s) w[s] = v[s ^ Block::permutation(order)];
        store_pack<float, kStatesPerLane>(&shared_.BC[buffer_][matrix][t][order][n], w);
      }
    });
  }

  __device__ __forceinline__ const float* states_of(int matrix, int t) const {
    const int order = Block::order_of(lane_ / Shape::kLanes);
    return &shared_.BC[buffer_][matrix][t][order][part_.state];
  }

  /// h before token `step`: a checkpoint, or the initial state.
  __device__ __forceinline__ void stage_start(int step) {
    const int n_checkpoints = (static_cast<int>(p_.length) - 1) / kTokens;
    const int64_t index = at_.batch * n_checkpoints + step / kTokens - 1;
    auto& to = own_.start[step / kTokens & 1];
    if (step > 0 && (kUsual || p_.d_state % kStatesPerLane == 0)) {
      const float* from = static_cast<const float*>(p_.checkpoints) +
                          (index * p_.d_inner + part_.channel) * d_state() + part_.state;
#pragma unroll
      for (int c = 0; c < Shape::kPerLane; ++c) {
        copy_async<16>(to[c][lane_], from + c * d_state(),
                       part_.channel + c < p_.d_inner && part_.state < d_state());
      }
    } else {
      Lane h;
      if (step > 0) {
        part_.load(h, packed_state(static_cast<float*>(p_.checkpoints), p_.d_inner, p_.d_state), p_,
                   index);
      } else {
        part_.load(h, p_.initial_state, p_, at_.batch);
      }
#pragma unroll
      for (int c = 0; c < Shape::kPerLane; ++c) {
#pragma unroll
        for (int s = 0; s < kStatesPerLane; ++s) to[c][lane_][s ^ part_.permutation] = h[c][s];
      }
    }
  }

  __device__ __forceinline__ void load_start(int step, Lane& h) const {
    const auto& from = own_.start[step / kTokens & 1];
#pragma unroll
    for (int c = 0; c < Shape::kPerLane; ++c) {
      load_pack<float, kStatesPerLane>(from[c][lane_], h[c]);
      part_.permute(h[c]);
    }
  }

  const SelectiveScanBackwardParams& p_;
  const BackwardWork& work_;
  const ScanPlace& at_;
  Shared& shared_;
  BackwardWarpShared<Shape, T, kTiles>& own_;
  const int lane_;
  const ScanItem<Shape> item_;
  const ScanPart<Shape> part_;
  int buffer_ = 0;  // of BC
  const FlagReader reader_;
  uint32_t flags_[kTiles] = {};
};

}  // namespace dmamba::kernels
