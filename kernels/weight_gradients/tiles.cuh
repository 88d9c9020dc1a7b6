// What the kernels of the weights' gradients share: a launch's tiles and who has which, a tile's
// sums in shared memory, and their way out of the memory of all blocks of a cluster.
#pragma once

#include <cooperative_groups.h>

#include <algorithm>

#include "kernels/common/launch.cuh"
#include "kernels/common/stretches.cuh"
#include "kernels/common/tile_sums.cuh"
#include "kernels/weight_gradients/launch.h"

namespace dmamba::kernels::weight_gradients {

constexpr int kTile = 128, kThreads = 256;
constexpr int kMinRows = 256;     // of a block
constexpr int kMostBlocks = 264;  // what a large device holds
constexpr int kGradientsPerLaunch = 48;

/// The gradients of one launch, and which of its tiles belong to which.
struct Batch {
  WeightGradient gradients[kGradientsPerLaunch];
  int first_tile[kGradientsPerLaunch + 1];
  int count;
};

/// A block's tile, and its share of the tokens.
struct Place {
  int gradient, first_row, first_column;  // the tile's
  int rows, columns;                      // from there on that exist; perhaps more than the tile's
  int rank;                               // of the cluster
  int64_t begin, tokens;                  // perhaps none

  /// Tokens are shared in pieces of `piece` among `blocks`.
  __device__ __forceinline__ Place(const Batch& batch, int blocks, int piece) {
    const int tile = static_cast<int>(blockIdx.x) / blocks;
    rank = static_cast<int>(blockIdx.x) % blocks;
    gradient = stretch_of(batch.first_tile, batch.count, tile);
    const WeightGradient& g = batch.gradients[gradient];
    const int place = tile - batch.first_tile[gradient], across = (g.m + kTile - 1) / kTile;
    first_row = place / across * kTile;
    first_column = place % across * kTile;
    rows = g.n - first_row;
    columns = g.m - first_column;
    const int64_t pieces = (g.rows + piece - 1) / piece, share = (pieces + blocks - 1) / blocks;
    begin = rank * share * piece;
    tokens = min(g.rows - begin, share * piece);
  }
};

/// Four neighbours of a row to global memory; `count` of them exist.
__device__ __forceinline__ void store_four(float* to, const float4& sum, int count) {
  if (count >= 4 && reinterpret_cast<uintptr_t>(to) % 16 == 0) {
    *reinterpret_cast<float4*>(to) = sum;
    return;
  }
  const float values[4] = {sum.x, sum.y, sum.z, sum.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (i < count) to[i] = values[i];
  }
}

/// Where a tile's row lies among its sums.
struct OrderedRows {
  static __device__ __forceinline__ int at(int row) { return row; }
};

/// Adds the tile over the blocks of the cluster, in one order; each block has its share of the
/// rows. The last of a kernel: the others may read this block's memory until it returns. Empty
/// where there are no clusters, as its callers are.
template <class Rows = OrderedRows>
__device__ __forceinline__ void add_over_cluster(float* tile, const Batch& batch, const Place& at,
                                                 int blocks) {
#if __CUDA_ARCH__ >= 900
  namespace cg = cooperative_groups;
  const cg::cluster_group cluster = cg::this_cluster();
  cluster.sync();
  const WeightGradient& g = batch.gradients[at.gradient];
  const int rows = kTile / blocks;
  for (int i = static_cast<int>(threadIdx.x); i < rows * kTile / 4; i += kThreads) {
    const int r = at.rank * rows + i / (kTile / 4), c = i % (kTile / 4) * 4;
    if (r >= at.rows || c >= at.columns) continue;
    float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll 4
    for (int block = 0; block < blocks; ++block) {
      const float4 part = *reinterpret_cast<const float4*>(cluster.map_shared_rank(tile, block) +
                                                           sum_at<kTile>(Rows::at(r), c));
      sum = make_float4(sum.x + part.x, sum.y + part.y, sum.z + part.z, sum.w + part.w);
    }
    store_four(g.dweight + int64_t{at.first_row + r} * g.m + at.first_column + c, sum,
               at.columns - c);
  }
  cluster.sync();
#endif
}

/// Those of `gradients` that fit one launch.
inline Batch make_batch(const WeightGradient* gradients, int count) {
  Batch batch;
  batch.count = std::min(kGradientsPerLaunch, count);
  batch.first_tile[0] = 0;
  for (int i = 0; i < batch.count; ++i) {
    const WeightGradient& g = gradients[i];
    batch.gradients[i] = g;
    batch.first_tile[i + 1] =
        batch.first_tile[i] + ((g.n + kTile - 1) / kTile) * ((g.m + kTile - 1) / kTile);
  }
  return batch;
}

/// Blocks of a cluster: as many as share the tokens with enough for each, and are at most
/// kMostBlocks in all.
inline int blocks_of_cluster(const Batch& batch) {
  int64_t rows = batch.gradients[0].rows;
  for (int i = 1; i < batch.count; ++i) rows = std::max(rows, batch.gradients[i].rows);
  int blocks = 1;
  while (blocks < 8 && rows >= int64_t{2} * blocks * kMinRows &&
         2 * blocks * batch.first_tile[batch.count] <= kMostBlocks) {
    blocks *= 2;
  }
  return blocks;
}

/// Clusters of `blocks` for every tile.
template <class... Args>
cudaError_t launch_tiles(void (*kernel)(Args...), const Batch& batch, int blocks, size_t bytes,
                         cudaStream_t stream, const Args&... args) {
  return launch_clusters(kernel, blocks,
                         static_cast<unsigned>(batch.first_tile[batch.count] * blocks), kThreads,
                         bytes, stream, args...);
}

}  // namespace dmamba::kernels::weight_gradients
