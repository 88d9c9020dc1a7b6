// What the backward scan's blocks share: sizes, scratch, and the layout of shared memory.
#pragma once

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

/// The tensors whose rows the walk reads and writes.
enum BackwardTensor { kU, kDelta, kZ, kDout, kB, kC, kDu, kDdelta, kDz };

template <class Shape>
struct BackwardShape {
  static constexpr int kWarps = Shape::kStates <= 64 ? 4 : 2;
  /// Blocks of a multiprocessor that the registers are shared out for: three would spill.
  static constexpr int kBlocks = Shape::kStates <= 16 ? 2 : 1;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kRow = 2 * Shape::kStates;  // dB and dC, or B and C, of a token
  static constexpr int kPermutationBits = Shape::kGroups >= 4 ? 2 : Shape::kGroups == 2 ? 1 : 0;
  static constexpr int kOrders = 1 << kPermutationBits;

  /// Bit k of a group's number says which half it keeps in round k; neighbouring groups have
  /// neighbouring orders, which keeps their reads in different banks.
  __device__ static constexpr int order_of(int group) { return group & (kOrders - 1); }
  /// Register s of a lane is state s ^ permutation.
  __device__ static constexpr int permutation(int order) { return (order & 1) * 2 + (order >> 1); }
};

/// One warp's shared memory: the interval to come as it is stored, what the walk needs of the
/// interval in work, and the sums of the tile in work.
template <class Shape, class T, int kTiles>
struct alignas(16) BackwardWarpShared {
  static constexpr int kTokens = kTiles * Shape::kSteps;
  T u[kTokens][Shape::kChannels];
  T delta[kTokens][Shape::kChannels];
  T z[kTokens][Shape::kChannels];
  T dout[kTokens][Shape::kChannels];
  float start[2][Shape::kPerLane][32][kStatesPerLane];  // h before the interval, by lane; two deep
  float bias[Shape::kChannels], D[Shape::kChannels];    // zeros where absent
  float dD[32][Shape::kWidth], dbias[32][Shape::kWidth];  // of the lanes' items so far

  float dt_dtu[kTokens][Shape::kChannels][2];
  float dy[kTokens][Shape::kChannels];
  T u_kept[kTokens][Shape::kChannels];
  float dsoftplus[kTokens][Shape::kChannels];  // d dt / d delta; 0 where a token doesn't count
  float dz_factor[kTokens][Shape::kChannels];  // dout SiLU'(z)

  float ddt[Shape::kSteps][Shape::kChannels];  // sum over states of log2(e) A a h g
  float Bg[Shape::kSteps][Shape::kChannels];   // sum over states of B g
  float y[Shape::kSteps][Shape::kChannels];    // sum over states of C h
};

/// The block's: B and C of an interval, and dB and dC of a tile by warp before they are summed. Two
/// deep each, so that one barrier a tile is enough.
template <class Shape, class T, int kTiles>
struct alignas(16) BackwardShared {
  const void* row[9];  // token 0 of this sequence, by BackwardTensor
  using Block = BackwardShape<Shape>;
  static constexpr int kTokens = kTiles * Shape::kSteps;
  alignas(16) T
      raw[2][kTokens][Shape::kStates];  // B and C of the interval to come; slots of single threads
  float BC[2][2][kTokens][Block::kOrders][Shape::kStates];
  float dBdC[2][Block::kWarps][Shape::kSteps][Block::kRow];
  BackwardWarpShared<Shape, T, kTiles> warps[Block::kWarps];
};

}  // namespace dmamba::kernels
