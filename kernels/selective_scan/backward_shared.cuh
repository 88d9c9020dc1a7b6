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
/// among a channel's lanes: kWidth of the lane's channels at every kSumTokens-th token. There the
/// sums over states end.
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
  static constexpr int kPermutationBits = Shape::kGroups >= 4 ? 2 : Shape::kGroups == 2 ? 1 : 0;
  static constexpr int kOrders = 1 << kPermutationBits;
  /// Packs of B and C that a thread brings.
  static constexpr int kPacks = 2 * Shape::kSteps * Shape::kLanes;
  static constexpr int kMyPacks = (kPacks + kThreads - 1) / kThreads;

  /// Bit k of a group's number says which half it keeps in round k; neighbouring groups have
  /// neighbouring orders, which keeps their reads in different banks.
  __device__ static constexpr int order_of(int group) { return group & (kOrders - 1); }
  /// Register s of a lane is state s ^ permutation.
  __device__ static constexpr int permutation(int order) { return (order & 1) * 2 + (order >> 1); }
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
    left = part % Block::kOwners == 0 ? static_cast<int>(p.d_inner) - at.channel - channel : 0;
  }
};

/// What a warp's walk reads of a token, by group: (dt, dt u) and dy of its channels. Rows of the
/// same length, so that one address serves both; eight floats more put the rows that the lanes of a
/// channel write into different banks.
template <class Shape>
struct alignas(16) BackwardToken {
  float dt_dtu[Shape::kGroups][2 * Shape::kPerLane];
  float dy[Shape::kGroups][2 * Shape::kPerLane];  // the first half of each row
  float padding[8];
};

/// A warp's input on its way, in slots that are each one lane's own.
template <class Shape, class T>
struct alignas(16) BackwardSlots {
  using Item = Pack<T, BackwardShape<Shape>::kWidth>[BackwardShape<Shape>::kItems][32];
  Item u, delta, z, dout;
  alignas(16) KeptStates<T> start[Shape::kPerLane][32];  // h before the tile
};

/// A block's: B and C of a tile in every order, and dB and dC of a tile by warp before they are
/// summed. Two deep each, so that one barrier a tile is enough.
template <class Shape, class T>
struct alignas(16) BackwardShared {
  using Block = BackwardShape<Shape>;
  float BC[2][2][Shape::kSteps][Block::kOrders * Shape::kStates + 16];  // 16: other banks
  float dBdC[2][Block::kWarps][Shape::kSteps][Block::kRow];
  BackwardToken<Shape> tokens[Block::kWarps][Shape::kSteps];
  BackwardSlots<Shape, T> slots[Block::kWarps];
  alignas(16) Pack<T, kStatesPerLane> states[Block::kMyPacks][Block::kThreads];
};

}  // namespace dmamba::kernels
