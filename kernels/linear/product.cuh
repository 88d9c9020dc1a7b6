// A warp's part of a tile's product, from the pieces in shared memory to the sums there.
#pragma once

#include "kernels/common/mma.cuh"
#include "kernels/linear/tile.cuh"

namespace dmamba::kernels::linear {

template <class Tile>
using Sums = float[Tile::kRowTiles][Tile::kColumnTiles][4];

/// Eight warps: two along the rows, four along the columns.
template <class Tile>
struct Warp {
  int lane = static_cast<int>(threadIdx.x) % 32;
  int row = static_cast<int>(threadIdx.x) / 128 * Tile::kRows / 2;
  int column = static_cast<int>(threadIdx.x) / 32 % 4 * Tile::kColumns / 4;
};

/// What a product takes: float32 rounded.
template <class Tile>
__device__ __forceinline__ uint32_t factor(uint32_t word) {
  if constexpr (Tile::kSingle) return to_tf32(__uint_as_float(word));
  return word;
}

/// Of the weight's columns of the warp, the two words of each eight at a step of 32 bytes of terms.
template <class Tile>
__device__ __forceinline__ void load_weight(uint32_t (&b)[Tile::kColumnTiles][2],
                                            const typename Tile::Number* weight, int step,
                                            const Warp<Tile>& at) {
  const int lane = at.lane;
  if constexpr (Tile::kByTerms && Tile::kSingle) {
    const auto* from = reinterpret_cast<const uint32_t*>(weight) +
                       (step * 8 + lane % 4) * Tile::kWeightPitch + at.column + lane / 4;
#pragma unroll
    for (int c = 0; c < Tile::kColumnTiles; ++c) {
      b[c][0] = from[c * 8];
      b[c][1] = from[c * 8 + 4 * Tile::kWeightPitch];
    }
  } else {
#pragma unroll
    for (int c = 0; c < Tile::kColumnTiles; c += 2) {
      uint32_t two[4];
      if constexpr (Tile::kByTerms) {
        load_tiles_transposed(
            two, weight + Tile::weight_at(step * 16 + lane % 16, at.column / 8 + c + lane / 16));
      } else {
        load_tiles(two, weight + Tile::weight_at(at.column + c * 8 + lane % 8 + lane / 16 * 8,
                                                 step * 2 + lane / 8 % 2));
      }
      b[c][0] = two[0], b[c][1] = two[1], b[c + 1][0] = two[2], b[c + 1][1] = two[3];
    }
  }
}

/// sums += x w over a piece.
template <class Tile>
__device__ __forceinline__ void multiply(const typename Tile::Stage& stage, const Warp<Tile>& at,
                                         Sums<Tile>& sums) {
#pragma unroll
  for (int step = 0; step < Tile::kSteps; ++step) {
    uint32_t a[Tile::kRowTiles][4], b[Tile::kColumnTiles][2];
#pragma unroll
    for (int r = 0; r < Tile::kRowTiles; ++r) {
      load_tiles(a[r],
                 stage.x + Tile::x_at(at.row + r * 16 + at.lane % 16, step * 2 + at.lane / 16));
#pragma unroll
      for (uint32_t& word : a[r]) word = factor<Tile>(word);
    }
    load_weight<Tile>(b, stage.weight, step, at);
#pragma unroll
    for (int c = 0; c < Tile::kColumnTiles; ++c) {
      b[c][0] = factor<Tile>(b[c][0]), b[c][1] = factor<Tile>(b[c][1]);
#pragma unroll
      for (int r = 0; r < Tile::kRowTiles; ++r) {
        if constexpr (Tile::kSingle) {
          multiply_add_tf32(sums[r][c], a[r], b[c][0], b[c][1]);
        } else {
          multiply_add(sums[r][c], a[r], b[c][0], b[c][1]);
        }
      }
    }
  }
}

}  // namespace dmamba::kernels::linear
