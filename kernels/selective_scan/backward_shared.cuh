// What the backward scan's blocks share: sizes, scratch, and the layout of shared memory.
#pragma once

#include "kernels/common/launch.cuh"
#include "kernels/selective_scan/checkpoint.cuh"
#include "kernels/selective_scan/chunks.cuh"
#include "kernels/selective_scan/tile.cuh"

namespace dmamba::kernels {

/// What the blocks leave for gradients.cu; parts are batch x n_chunks.
struct BackwardParts {
  float* dA;           // (parts, d_inner, d_state)
  float* dD;           // (parts, d_inner)
  float* ddelta_bias;  // (parts, d_inner)
  float* dBdC;         // (channel blocks, batch, L, 2, d_state); unused with one channel block
};

struct BackwardWork {
  int chunk_length, n_chunks, channel_blocks;
  ScanVectors vectors;
  ChunkCarries carries;
  BackwardParts parts;
  Sequence dB, dC;  // written by the blocks themselves where there is one channel block
};

/// Sizes of the backward pass. Its items, what is done once a channel and token, are shared out
/// among a channel's lanes: kWidth of the lane's channels at every kSumTokens-th token.
template <class Shape>
struct BackwardShape {
  static constexpr int kWarps = Shape::kStates <= 64 ? 4 : 2;
  /// Blocks of a multiprocessor that the registers are shared out for: three would spill.
  static constexpr int kBlocks = Shape::kStates <= 16 ? 2 : 1;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kSumTokens = Shape::kLanes < Shape::kSteps ? Shape::kLanes : Shape::kSteps;
  static constexpr int kSums = kSumTokens * Shape::kPerLane;  // made together
  static constexpr int kWidth = kSums > Shape::kLanes ? kSums / Shape::kLanes : 1;
  static constexpr int kItems = Shape::kSteps / kSumTokens;       // of a lane and tile
  static constexpr int kOwners = Shape::kLanes * kWidth / kSums;  // lanes with the same item
  static constexpr int kRow = 2 * Shape::kStates;  // dB and dC, or B and C, of a token
  /// Packs of B and C that a thread brings.
  static constexpr int kPacks = 2 * Shape::kSteps * Shape::kLanes;
  static constexpr int kMyPacks = (kPacks + kThreads - 1) / kThreads;
};

/// A lane's first item: token of the tile, channel of the warp, and how many channels are left in
/// the row from there on: at most 0 outside d_inner, and where another lane has the item, too.
template <class Shape>
struct BackwardItem {
  using Block = BackwardShape<Shape>;
  int token, channel, left;

  __device__ BackwardItem(const SelectiveScanParams& p, const ScanPlace& at, int lane) {
    const int part = lane % Shape::kLanes, first = part / Block::kOwners * Block::kWidth;
    token = first / Shape::kPerLane;
    channel = lane / Shape::kLanes * Shape::kPerLane + first % Shape::kPerLane;
    left = owned_by(lane) ? static_cast<int>(p.d_inner) - at.channel - channel : 0;
  }

  /// Of the lanes with the same item the first, which alone has its channels' D and bias, and
  /// stores its results.
  __device__ static bool owned_by(int lane) { return lane % Block::kOwners == 0; }
};

/// What a warp's walk reads of a token, by group: (dt, dt u) and dy of its channels. The padding
/// puts the rows that the lanes of a channel write into different banks.
template <class Shape>
struct alignas(16) BackwardToken {
  float dt_dtu[Shape::kGroups][2 * Shape::kPerLane];
  float dy[Shape::kGroups][Shape::kPerLane];
  float padding[8];
};

/// What a lane keeps of an item until its sums are there.
template <int kWidth>
struct alignas(16) BackwardKept {
  float D_dy[kWidth], dt[kWidth];
  float dsoftplus[kWidth];    // ln 2 d dt / d delta; 0 where a token doesn't count
  float u_dsoftplus[kWidth];  // u d dt / d delta
};

/// Sums over a warp's lanes on their way: each lane leaves its part, then each adds up some of
/// them. Rows of tokens are padded, so that they begin in different banks.
template <class Shape>
struct alignas(16) LaneParts {
  using Block = BackwardShape<Shape>;
  /// dC, then dB: of the tile's tokens, by group and state.
  float matrix[Shape::kSteps][32 * kStatesPerLane + 16];
  /// Of channels, by lane: (ddt, sum of B g).
  float ddt_Bg[Block::kSumTokens][32 * 2 * Shape::kPerLane + 4];
};

/// A warp's own: input on its way, and what its items keep.
template <class Shape, class T>
struct alignas(16) BackwardWarpShared {
  using Block = BackwardShape<Shape>;
  BackwardToken<Shape> tokens[Shape::kSteps];
  T u[Shape::kSteps][Shape::kChannels], delta[Shape::kSteps][Shape::kChannels];
  T z[Shape::kSteps][Shape::kChannels], dout[Shape::kSteps][Shape::kChannels];
  T out[Shape::kSteps][Shape::kChannels];
  alignas(16) KeptStates<T> start[Shape::kPerLane][32];  // h before the tile
  alignas(16) BackwardKept<Block::kWidth> kept[Block::kItems][32];
  LaneParts<Shape> parts;
};

/// A block's: B and C of a tile, and dB and dC of a tile by warp before they are summed. Two deep
/// each, so that one barrier a tile is enough.
template <class Shape, class T>
struct alignas(16) BackwardShared {
  using Block = BackwardShape<Shape>;
  float BC[2][2][Shape::kSteps][Shape::kStates];
  float dBdC[2][Block::kWarps][Shape::kSteps][Block::kRow];
  BackwardWarpShared<Shape, T> warps[Block::kWarps];
  alignas(16) Pack<T, kStatesPerLane> states[Block::kMyPacks][Block::kThreads];
};

}  // namespace dmamba::kernels
