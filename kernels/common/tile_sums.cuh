// The sums of a block's tile in shared memory, as tensor-core products (mma.cuh, wgmma.cuh) leave
// them in a warp's lanes.
#pragma once

#include <cuda_runtime.h>

namespace dmamba::kernels {

/// Where a number of a tile lies whose rows have kColumns: eight rows of a fragment fall into
/// different banks.
template <int kColumns>
__device__ __forceinline__ int sum_at(int row, int column) {
  return row * kColumns + (column ^ (row & 7) * 8);
}

/// A warp's sums of 16 kRowTiles rows and 8 kColumnTiles columns, from this row and column of the
/// tile on.
template <int kColumns, int kRowTiles, int kColumnTiles>
__device__ __forceinline__ void leave_sums(float* tile, int row, int column,
                                           const float (&sums)[kRowTiles][kColumnTiles][4]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int c = 0; c < kColumnTiles; ++c) {
        const int at =
            sum_at<kColumns>(row + 16 * r + 8 * half + lane / 4, column + 8 * c + 2 * (lane % 4));
        *reinterpret_cast<float2*>(tile + at) =
            make_float2(sums[r][c][2 * half], sums[r][c][2 * half + 1]);
      }
    }
  }
}

}  // namespace dmamba::kernels
