// How a warp holds a piece of the scan; shared by all its kernels.
//
// A warp walks kChannels channels of one sequence together, tile by tile of kSteps tokens, and
// holds the state in registers: lane = kLanes * group + part has four states, 4 part ... 4 part +
// 3, of the kPerLane channels from kPerLane * group on. With d_state 16 and two channels a lane a
// warp has 16 channels: per token a lane reads two (dt, dt u), four B and four C from shared memory
// for eight states. Square pieces need the fewest of these, and the fewest sums over lanes: over
// states (y) and over channels (dB, dC). What bounds these kernels is the register file, the path
// from shared memory to registers, 128 bytes a clock, and the special-function units
// (docs/kernels.md).
//
// What is done once a channel and token (softplus, gates, D) is done in another arrangement,
// "items": kWidth neighbouring channels of one token to a lane, as memory has them. (The backward
// pass shares its items out in another way: backward_shared.cuh.)
#pragma once

#include "kernels/common/math.cuh"
#include "kernels/common/storage.cuh"
#include "kernels/common/warp.cuh"
#include "kernels/selective_scan/params.h"

namespace dmamba::kernels {

constexpr int kStatesPerLane = 4;

template <int kLanes_>
struct ScanShape {
  static constexpr int kLanes = kLanes_;  // lanes of a channel
  static constexpr int kPerLane = 2;      // channels of a lane
  static constexpr int kStates = kStatesPerLane * kLanes;
  static constexpr int kGroups = 32 / kLanes;
  static constexpr int kChannels = kPerLane * kGroups;  // of a warp
  static constexpr int kSteps = 8;                      // tokens of a tile
  /// Tokens whose sums over a channel's lanes are made together in the forward pass: twice as many
  /// sums as lanes, so that they need not wait for one another, or all of a tile's.
  static constexpr int kSumTokens = 2 * kLanes / kPerLane < kSteps ? 2 * kLanes / kPerLane : kSteps;
  static constexpr int kSums = kSumTokens * kPerLane;
  static constexpr int kSumsMine = kSums > kLanes ? kSums / kLanes : 1;   // what a lane ends with
  static constexpr int kSumOwners = kLanes > kSums ? kLanes / kSums : 1;  // lanes with the same sum
  static constexpr int kWidth = kChannels < 4 ? kChannels : 4;
  static constexpr int kPacks = kChannels / kWidth;                // of a token
  static constexpr int kItems = (kSteps * kPacks + 31) / 32;       // of a lane and tile
  static constexpr bool kAllBusy = kSteps * kPacks >= 32;          // every lane has items
  static constexpr int kItemSteps = 32 / kPacks;                   // tokens between a lane's items
  static constexpr int kStateItems = (kSteps * kLanes + 31) / 32;  // packs of B or C likewise
  static constexpr bool kAllBusyStates = kSteps * kLanes >= 32;
};

using UsualShape = ScanShape<4>;  // of d_state 16

/// Where a warp works: sequence, chunk, first channel, and the tokens [begin, end) of its chunk.
struct ScanPlace {
  int64_t batch;
  int chunk, channel, begin, end;
};

/// Blocks go over (batch, n_chunks chunks from first_chunk on, kWarps x kChannels channels),
/// channels fastest.
template <class Shape, int kWarps>
__device__ __forceinline__ ScanPlace place_of_warp(const SelectiveScanParams& p, int first_chunk,
                                                   int n_chunks, int chunk_length, int warp) {
  constexpr int kBlockChannels = kWarps * Shape::kChannels;
  const int channel_blocks = (static_cast<int>(p.d_inner) + kBlockChannels - 1) / kBlockChannels;
  const int sequence = static_cast<int>(blockIdx.x) / channel_blocks;
  const int channel =
      static_cast<int>(blockIdx.x) % channel_blocks * kBlockChannels + warp * Shape::kChannels;
  const int chunk = first_chunk + sequence % n_chunks, begin = chunk * chunk_length;
  return {sequence / n_chunks, chunk, channel, begin,
          min(begin + chunk_length, static_cast<int>(p.length))};
}

/// What memory allows as one access: four neighbouring channels, four neighbouring states of B and
/// C, and of A.
struct ScanVectors {
  bool channels, states, A;
};

/// A lane's first item: token of the tile, channel of the warp, how many channels are left in the
/// row from there on (at most 0 outside d_inner), and whether the lane has any.
template <class Shape>
struct ScanItem {
  int token, channel, left;
  bool busy;

  __device__ ScanItem(const SelectiveScanParams& p, const ScanPlace& at, int lane)
      : token(lane / Shape::kPacks),
        channel(lane % Shape::kPacks * Shape::kWidth),
        left(static_cast<int>(p.d_inner) - at.channel - channel),
        busy(Shape::kAllBusy || token < Shape::kSteps) {}

  /// Row-major place in a tile.
  __device__ int index(int i) const {
    return (token + i * Shape::kItemSteps) * Shape::kChannels + channel;
  }
};

/// A walk over rows of a tensor: this lane's place in the tile, and the way to the next token.
template <class T>
struct RowWalk {
  T* at;
  int64_t stride;

  /// At token `token` of a sequence, `column` elements into the row.
  __device__ RowWalk(const Sequence& s, int64_t batch, int token, int column)
      : at(static_cast<T*>(s.data) + batch * s.batch_stride + token * s.step_stride + column),
        stride(s.step_stride) {}
  __device__ __forceinline__ void move(int tokens) { at += tokens * stride; }
  __device__ __forceinline__ T* row(int tokens) const { return at + tokens * stride; }
};

/// One value a channel, zero where absent or outside.
template <int kWidth>
__device__ __forceinline__ void load_channels(float (&out)[kWidth], const void* vector,
                                              int64_t first, int left) {
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    out[i] = vector != nullptr && i < left ? static_cast<const float*>(vector)[first + i] : 0.0F;
  }
}

/// The flags of a tile as lanes hold them: lane t the mask of token t, lane 8 + t whether a segment
/// starts there. Loaded early and looked at late: a bool would be looked at, and waited for, at
/// once.
struct FlagReader {
  const uint8_t* at;   // this lane's flag of the sequence's token 0; null where absent
  uint32_t otherwise;  // what an absent flag is

  template <class Shape>
  __device__ static FlagReader of(const SelectiveScanParams& p, int64_t batch, int lane) {
    const bool is_mask = lane < Shape::kSteps;
    const bool* flags = is_mask                    ? p.mask.data
                        : lane < 2 * Shape::kSteps ? p.segment_starts.data
                                                   : nullptr;
    if (flags != nullptr) flags += batch * p.length + lane % Shape::kSteps;
    return {reinterpret_cast<const uint8_t*>(flags), is_mask ? 1U : 0U};
  }
  __device__ __forceinline__ uint32_t load(int step, bool inside) const {
    uint32_t flag = inside ? otherwise : 0U;
    if (inside && at != nullptr) flag = at[step];
    return flag;
  }
};

/// Bit t: token t counts; bit 8 + t: a segment starts at token t.
struct TileFlags {
  uint32_t bits;
  __device__ __forceinline__ bool counts(int t) const { return (bits >> t) & 1U; }
  __device__ __forceinline__ bool starts(int t) const { return (bits >> (8 + t)) & 1U; }
  /// Every token counts, and no segment starts.
  __device__ __forceinline__ bool plain() const { return bits == 0xFFU; }
  /// What is added to the exponent of exp(dt A): at a segment's start the state before is
  /// forgotten, 2^-inf = 0.
  __device__ __forceinline__ float forget(int t) const {
    return starts(t) ? __int_as_float(static_cast<int>(0xFF800000U)) : kExp2Shift;
  }
};

/// The lane's part of A, a state or its gradient: registers [channel][s] for the states state + s.
template <class Shape>
struct ScanPart {
  int channel, state;
  __device__ __forceinline__ bool inside(const SelectiveScanParams& p, int c, int s) const {
    return channel + c < p.d_inner && state + s < p.d_state;
  }
  /// The part of a row-major (d_inner, d_state) array, four states at a time; d_state is a multiple
  /// of four and the array aligned. Zeros outside.
  __device__ __forceinline__ void load_rows(float (&h)[Shape::kPerLane][kStatesPerLane],
                                            const float* from, const SelectiveScanParams& p) const {
    const int states = static_cast<int>(p.d_state);
#pragma unroll
    for (int c = 0; c < Shape::kPerLane; ++c) {
      Pack<float, kStatesPerLane> pack = {};
      if (channel + c < p.d_inner && state < states) {
        pack = *reinterpret_cast<const Pack<float, kStatesPerLane>*>(from + (channel + c) * states +
                                                                     state);
      }
      pack.get(h[c]);
    }
  }

  __device__ __forceinline__ void store_rows(const float (&h)[Shape::kPerLane][kStatesPerLane],
                                             float* to, const SelectiveScanParams& p) const {
    const int states = static_cast<int>(p.d_state);
#pragma unroll
    for (int c = 0; c < Shape::kPerLane; ++c) {
      if (channel + c < p.d_inner && state < states) {
        store_pack<float, kStatesPerLane>(to + (channel + c) * states + state, h[c]);
      }
    }
  }

  /// log2(e) A, zero outside: 2^(dt A) needs no further product.
  __device__ __forceinline__ void load_A(float (&A)[Shape::kPerLane][kStatesPerLane],
                                         const SelectiveScanParams& p, bool rows) const {
    if (rows) {
      load_rows(A, static_cast<const float*>(p.A), p);
#pragma unroll
      for (int c = 0; c < Shape::kPerLane; ++c) {
#pragma unroll
        for (int s = 0; s < kStatesPerLane; ++s) A[c][s] *= kLog2e;
      }
      return;
    }
#pragma unroll
    for (int c = 0; c < Shape::kPerLane; ++c) {
#pragma unroll
      for (int s = 0; s < kStatesPerLane; ++s) {
        A[c][s] =
            inside(p, c, s)
                ? kLog2e *
                      static_cast<const float*>(
                          p.A)[(channel + c) * p.A_channel_stride + (state + s) * p.A_state_stride]
                : 0.0F;
      }
    }
  }

  /// A state with any strides; zeros where it is absent.
  __device__ __forceinline__ void load(float (&h)[Shape::kPerLane][kStatesPerLane],
                                       const StateView& from, const SelectiveScanParams& p,
                                       int64_t batch) const {
#pragma unroll
    for (int c = 0; c < Shape::kPerLane; ++c) {
#pragma unroll
      for (int s = 0; s < kStatesPerLane; ++s) {
        h[c][s] =
            from.data != nullptr && inside(p, c, s)
                ? static_cast<const float*>(
                      from.data)[batch * from.batch_stride + (channel + c) * from.channel_stride +
                                 (state + s) * from.width_stride]
                : 0.0F;
      }
    }
  }

  __device__ __forceinline__ void store(const float (&h)[Shape::kPerLane][kStatesPerLane],
                                        const StateView& to, const SelectiveScanParams& p,
                                        int64_t batch) const {
#pragma unroll
    for (int c = 0; c < Shape::kPerLane; ++c) {
#pragma unroll
      for (int s = 0; s < kStatesPerLane; ++s) {
        if (!inside(p, c, s)) continue;
        static_cast<float*>(to.data)[batch * to.batch_stride + (channel + c) * to.channel_stride +
                                     (state + s) * to.width_stride] = h[c][s];
      }
    }
  }
};

/// Row-major (outer, d_inner, d_state) in scratch or checkpoints, seen as a state of batch `outer`.
__host__ __device__ __forceinline__ StateView packed_state(float* data, int64_t d_inner,
                                                           int64_t d_state) {
  return {data, d_inner * d_state, d_state, 1};
}

}  // namespace dmamba::kernels
