// The convolution's usual shape (four taps, SiLU, aligned rows, neither states nor segment starts)
// as the training step has it: few tokens, so that what counts is how early all loads are on their
// way. A block has kTileChannels channels of a tile of tokens, which it asks for at once, in shared
// memory; a warp walks a stretch of the tile, a lane has two neighbouring channels.
#pragma once

#include "kernels/causal_conv1d/pair.cuh"
#include "kernels/causal_conv1d/walk.cuh"
#include "kernels/common/copy.cuh"

namespace dmamba::kernels {

constexpr int kTileChannels = 64, kTileWarps = 8, kTileThreads = 32 * kTileWarps;
constexpr int kTileUnroll = 4;  // stretches are multiples of it

/// Tokens of a stretch where there are many; of float32 more would not fit.
template <class T>
constexpr int kTileLongest = sizeof(T) == 2 ? 8 : 4;
template <class T>
constexpr int kTileMost = kTileWarps * kTileLongest<T>;  // tokens of a tile

/// Sequences shorter than this would leave most warps idle.
constexpr int64_t kTileShortest = 16;
/// Beyond these elements the walk of whole sequences is as fast, or faster.
constexpr int64_t tile_many_elements(Storage storage) {
  return int64_t{1} << (storage == Storage::kBFloat16 ? 23 : 22);
}

/// Blocks go over (batch, tiles, channel blocks), the last fastest.
struct ConvTiles {
  int channel_blocks, stretch, n_tiles;
  int row_blocks;  // batch n_tiles
};

/// From sizes alone: the cut decides the order of sums.
inline ConvTiles conv_tiles(const CausalConv1dParams& p) {
  ConvTiles g{};
  g.channel_blocks = static_cast<int>((p.d_inner + kTileChannels - 1) / kTileChannels);
  const auto tiles = [&](int stretch) {
    return (p.length + kTileWarps * stretch - 1) / (kTileWarps * stretch);
  };
  g.stretch = p.storage == Storage::kBFloat16 ? kTileLongest<bfloat16> : kTileLongest<float>;
  if (p.batch * tiles(g.stretch) * g.channel_blocks < 4 * 132) g.stretch = kTileUnroll;
  g.n_tiles = static_cast<int>(tiles(g.stretch));
  g.row_blocks = static_cast<int>(p.batch) * g.n_tiles;
  return g;
}

/// Whether tiles are for this problem. The caller sees to states and to the other sequences' rows.
inline bool conv_tiles_fit(const CausalConv1dParams& p) {
  return conv_weight_is_wide(p) && p.silu && p.segment_starts.data == nullptr &&
         p.initial_state.data == nullptr && p.length >= kTileShortest &&
         conv_rows_are_wide(p, p.x, 16 / storage_bytes(p.storage)) &&
         p.batch * p.length * p.d_inner < tile_many_elements(p.storage);
}

/// The thread's piece: tokens [begin, begin + stretch) and two channels from `channel` on.
struct TilePlace {
  int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  int row_block, first_channel, channel;
  int64_t batch;
  int first, begin, length;  // first: of the tile
  bool works;                // there are such channels and tokens

  __device__ __forceinline__ TilePlace(const CausalConv1dParams& p, const ConvTiles& g) {
    const unsigned block = blockIdx.x, blocks = static_cast<unsigned>(g.channel_blocks);
    const unsigned rows = block / blocks, tiles = static_cast<unsigned>(g.n_tiles);
    row_block = static_cast<int>(rows);
    first_channel = static_cast<int>(block - rows * blocks) * kTileChannels;
    channel = first_channel + 2 * lane;
    batch = rows / tiles;
    first = static_cast<int>(rows % tiles) * kTileWarps * g.stretch;
    begin = first + warp * g.stretch;
    length = static_cast<int>(p.length);
    works = channel < p.d_inner && begin < length;
  }
};

/// Asks for `count` tokens from `token` on; zeros outside the sequence.
template <class T>
__device__ __forceinline__ void stage_tokens(T* to, const Sequence& s, const CausalConv1dParams& p,
                                             const TilePlace& at, int token, int count) {
  constexpr int kPack = 16 / sizeof(T), kPacks = kTileChannels / kPack;
  constexpr int kRows = kTileThreads / kPacks;  // at a time
  const int first = static_cast<int>(threadIdx.x) / kPacks;
  const int pack = static_cast<int>(threadIdx.x) % kPacks * kPack;
  const bool channels = at.first_channel + pack < p.d_inner;
  const T* from = static_cast<const T*>(s.data) + at.batch * s.batch_stride +
                  (token + first) * s.step_stride + at.first_channel + pack;
  // Rolled up: few turns, and unrolled most of the kernel's code would be addresses.
#pragma unroll 1
  for (int row = first; row < count; row += kRows) {
    const bool there = channels && token + row >= 0 && token + row < at.length;
    copy_async(to + row * kTileChannels + pack, there ? from : s.data, there ? 16 : 0);
    from += kRows * s.step_stride;
  }
}

/// All bits where the mask holds, else none; of no more tokens than threads.
__device__ __forceinline__ void stage_mask(uint32_t* to, const CausalConv1dParams& p,
                                           const TilePlace& at, int token, int count) {
  const auto* from = reinterpret_cast<const uint8_t*>(p.mask.data);
  const int i = static_cast<int>(threadIdx.x), t = token + i;
  if (i >= count) return;
  const bool looks = from != nullptr && t >= 0 && t < at.length;
  to[i] = !looks || from[at.batch * p.length + t] != 0 ? ~0U : 0U;
}

cudaError_t launch_conv_tiles_forward(const CausalConv1dForwardParams& p, cudaStream_t stream);
/// partial: (row_blocks, width + 1, d_inner), as in sums.cuh.
cudaError_t launch_conv_tiles_backward(const CausalConv1dBackwardParams& p, float* partial,
                                       cudaStream_t stream);

}  // namespace dmamba::kernels
