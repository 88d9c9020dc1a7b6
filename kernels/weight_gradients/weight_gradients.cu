// The gradients dy^T x of many weights in one launch: small outputs, long sums over the tokens.
//
// An output is cut into tiles of 128 x 128, and the tokens of a tile among the blocks of a cluster,
// so that few tiles fill the device. A block multiplies on the tensor cores, 16 or 32 tokens at a
// time, while the next three such pieces are on their way (cp.async); at the end each block of the
// cluster adds its share of the rows over all blocks, in one order, out of their shared memory.
// Nothing is left in parts, nothing is added atomically. How many blocks share a tile depends on
// sizes alone, so the sums have one order on any device.
//
//   shared memory   4 pieces of dy and x, 64 (bf16) or 68 KiB; the sums of a tile take their place
//   a warp          64 x 32 of the tile, 64 sums a lane; two blocks a multiprocessor
//
// bfloat16: a row of a piece is 16 packs of 16 bytes, pack p of row r at p ^ (r % 8), so that the
// eight rows of a transposed 8 x 8 load lie in different banks. float32: rows are 8 numbers longer
// than they look, so that 4 rows x 8 columns of a fragment do.
#include <cooperative_groups.h>

#include <algorithm>

#include "kernels/common/alignment.h"
#include "kernels/common/copy.cuh"
#include "kernels/common/mma.cuh"
#include "kernels/weight_gradients/launch.h"

namespace dmamba::kernels {
namespace {

constexpr int kTile = 128, kThreads = 256, kStages = 4, kPackBytes = 16;
constexpr int kRowTiles = 4, kColumnTiles = 4;  // of a warp: 16 rows, 8 columns each
constexpr int kMaxBlocks = 132;                 // leaves half of a large device to the work beside
constexpr int kMinRows = 256;                   // of a block
constexpr int kGradientsPerLaunch = 48;

/// How a piece of `kTokens` rows of 128 numbers lies in shared memory.
template <class T>
struct Piece;

template <>
struct Piece<BFloat16> {
  static constexpr int kTokens = 32, kPitch = kTile;
  static __device__ __forceinline__ int pack_at(int row, int pack) {
    return row * kPitch + (pack ^ (row & 7)) * 8;
  }
};

template <>
struct Piece<float> {
  static constexpr int kTokens = 16, kPitch = kTile + 8;
  static __device__ __forceinline__ int pack_at(int row, int pack) {
    return row * kPitch + pack * 4;
  }
};

template <class T>
struct Stage {
  T dy[Piece<T>::kTokens * Piece<T>::kPitch];
  T x[Piece<T>::kTokens * Piece<T>::kPitch];
};

template <class T>
constexpr size_t kSharedBytes = std::max(kStages * sizeof(Stage<T>), sizeof(float) * kTile * kTile);

/// The gradients of one launch, and which of its tiles belong to which.
struct Batch {
  WeightGradient gradients[kGradientsPerLaunch];
  int first_tile[kGradientsPerLaunch + 1];
  int count;
};

/// A block's columns of one factor, from the block's first token on.
template <class T>
struct Columns {
  const T* data;
  int64_t stride;
  int count;  // columns that exist

  /// Sends `tokens` rows from `first` on; rows and columns that don't exist become zero.
  __device__ __forceinline__ void send(T* piece, int64_t first, int64_t tokens) const {
    constexpr int kPackSize = kPackBytes / static_cast<int>(sizeof(T));
    constexpr int kPacks = kTile / kPackSize;
    constexpr int kEach = Piece<T>::kTokens * kPacks / kThreads;
#pragma unroll
    for (int n = 0; n < kEach; ++n) {
      const int i = static_cast<int>(threadIdx.x) + n * kThreads;
      const int row = i / kPacks, pack = i % kPacks, left = count - pack * kPackSize;
      const bool exists = first + row < tokens && left > 0;
      const T* from = exists ? data + (first + row) * stride + pack * kPackSize : data;
      copy_async(piece + Piece<T>::pack_at(row, pack), from,
                 exists ? min(left, kPackSize) * static_cast<int>(sizeof(T)) : 0);
    }
  }
};

using Sums = float[kRowTiles][kColumnTiles][4];

/// sums += dy^T x over a piece, for the warp's rows from `row` and columns from `column` on.
__device__ __forceinline__ void multiply(const Stage<BFloat16>& stage, int row, int column,
                                         Sums& sums) {
  using P = Piece<BFloat16>;
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int first = 0; first < P::kTokens; first += 16) {
    uint32_t a[kRowTiles][4], b[kColumnTiles / 2][4];
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
      load_tiles_transposed(a[r], stage.dy + P::pack_at(first + lane % 8 + lane / 16 * 8,
                                                        row / 8 + 2 * r + lane / 8 % 2));
    }
#pragma unroll
    for (int c = 0; c < kColumnTiles / 2; ++c) {
      load_tiles_transposed(
          b[c], stage.x + P::pack_at(first + lane % 16, column / 8 + 2 * c + lane / 16));
    }
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
      for (int c = 0; c < kColumnTiles; ++c) {
        multiply_add(sums[r][c], a[r], b[c / 2][c % 2 * 2], b[c / 2][c % 2 * 2 + 1]);
      }
    }
  }
}

__device__ __forceinline__ void multiply(const Stage<float>& stage, int row, int column,
                                         Sums& sums) {
  using P = Piece<float>;
  const int group = static_cast<int>(threadIdx.x) % 32 / 4,
            lane = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
  for (int first = 0; first < P::kTokens; first += 8) {
    const float* dy = stage.dy + (first + lane) * P::kPitch + row + group;
    const float* x = stage.x + (first + lane) * P::kPitch + column + group;
    uint32_t a[kRowTiles][4], b[kColumnTiles][2];
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        a[r][i] = to_tf32(dy[i / 2 * 4 * P::kPitch + r * 16 + i % 2 * 8]);
      }
    }
#pragma unroll
    for (int c = 0; c < kColumnTiles; ++c) {
#pragma unroll
      for (int i = 0; i < 2; ++i) b[c][i] = to_tf32(x[i * 4 * P::kPitch + c * 8]);
    }
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
      for (int c = 0; c < kColumnTiles; ++c) {
        multiply_add_tf32(sums[r][c], a[r], b[c][0], b[c][1]);
      }
    }
  }
}

/// Where a number of the tile's sums lies: eight rows of a fragment fall into different banks.
__device__ __forceinline__ int sum_at(int row, int column) {
  return row * kTile + (column ^ (row & 7) * 8);
}

__device__ __forceinline__ void leave_sums(float* tile, int row, int column, const Sums& sums) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int c = 0; c < kColumnTiles; ++c) {
        const int at = sum_at(row + 16 * r + 8 * half + lane / 4, column + 8 * c + 2 * (lane % 4));
        *reinterpret_cast<float2*>(tile + at) =
            make_float2(sums[r][c][2 * half], sums[r][c][2 * half + 1]);
      }
    }
  }
}

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

template <class T>
__global__ void __launch_bounds__(kThreads, 2)
    weight_gradients_kernel(const __grid_constant__ Batch batch, int blocks) {
#if __CUDA_ARCH__ >= 900
  namespace cg = cooperative_groups;
  constexpr int kTokens = Piece<T>::kTokens;
  extern __shared__ __align__(16) unsigned char memory[];
  auto* stages = reinterpret_cast<Stage<T>*>(memory);
  auto* tile_sums = reinterpret_cast<float*>(memory);

  const int tile = static_cast<int>(blockIdx.x) / blocks;
  const int rank = static_cast<int>(blockIdx.x) % blocks;
  int low = 0, high = batch.count;  // first_tile[low] <= tile < first_tile[high]
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (batch.first_tile[middle] <= tile ? low : high) = middle;
  }
  const WeightGradient& g = batch.gradients[low];
  const int place = tile - batch.first_tile[low], across = (g.m + kTile - 1) / kTile;
  const int first_row = place / across * kTile, first_column = place % across * kTile;

  const int64_t pieces = (g.rows + kTokens - 1) / kTokens, share = (pieces + blocks - 1) / blocks;
  const int64_t begin = rank * share * kTokens;
  const int64_t tokens = min(g.rows - begin, share * kTokens);
  const int steps = tokens <= 0 ? 0 : static_cast<int>((tokens + kTokens - 1) / kTokens);
  const Columns<T> dy{static_cast<const T*>(g.dy) + begin * g.dy_stride + first_row, g.dy_stride,
                      g.n - first_row};
  const Columns<T> x{static_cast<const T*>(g.x) + begin * g.x_stride + first_column, g.x_stride,
                     g.m - first_column};
  const auto send = [&](int step) {
    if (step < steps) {
      Stage<T>& stage = stages[step % kStages];
      dy.send(stage.dy, int64_t{step} * kTokens, tokens);
      x.send(stage.x, int64_t{step} * kTokens, tokens);
    }
    commit_copies();
  };

  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int row = warp / 4 * 64, column = warp % 4 * 32;
  const bool works = row < dy.count && column < x.count;
  Sums sums = {};
#pragma unroll
  for (int step = 0; step < kStages - 1; ++step) send(step);
  for (int step = 0; step < steps; ++step) {
    wait_for_copies<kStages - 2>();
    __syncthreads();  // the piece is there for all, and the one before is used up
    send(step + kStages - 1);
    if (works) multiply(stages[step % kStages], row, column, sums);
  }
  wait_for_copies<0>();
  __syncthreads();
  leave_sums(tile_sums, row, column, sums);

  const cg::cluster_group cluster = cg::this_cluster();
  cluster.sync();
  const int rows = kTile / blocks;
  for (int i = static_cast<int>(threadIdx.x); i < rows * kTile / 4; i += kThreads) {
    const int r = rank * rows + i / (kTile / 4), c = i % (kTile / 4) * 4;
    if (r >= dy.count || c >= x.count) continue;
    float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll 4
    for (int block = 0; block < blocks; ++block) {
      const float4 part = *reinterpret_cast<const float4*>(
          cluster.map_shared_rank(tile_sums, block) + sum_at(r, c));
      sum = make_float4(sum.x + part.x, sum.y + part.y, sum.z + part.z, sum.w + part.w);
    }
    store_four(g.dweight + int64_t{first_row + r} * g.m + first_column + c, sum, x.count - c);
  }
  cluster.sync();  // the others may still read this block's memory
#endif
}

int tiles_of(const WeightGradient& g) {
  return ((g.n + kTile - 1) / kTile) * ((g.m + kTile - 1) / kTile);
}

/// Blocks of a cluster: as many as share the tokens with enough for each, and fit at once.
int blocks_of_cluster(const Batch& batch) {
  int64_t rows = batch.gradients[0].rows;
  for (int i = 1; i < batch.count; ++i) rows = std::max(rows, batch.gradients[i].rows);
  int blocks = 1;
  while (blocks < 8 && rows >= int64_t{2} * blocks * kMinRows &&
         2 * blocks * batch.first_tile[batch.count] <= kMaxBlocks) {
    blocks *= 2;
  }
  return blocks;
}

template <class T>
cudaError_t launch(const Batch& batch, cudaStream_t stream) {
  const int blocks = blocks_of_cluster(batch);
  cudaError_t error =
      cudaFuncSetAttribute(weight_gradients_kernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                           static_cast<int>(kSharedBytes<T>));
  if (error != cudaSuccess) return error;
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {static_cast<unsigned>(blocks), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(batch.first_tile[batch.count] * blocks));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = kSharedBytes<T>;
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, weight_gradients_kernel<T>, batch, blocks);
}

}  // namespace

bool weight_gradient_fits(const WeightGradient& gradient, Storage storage) {
  const int64_t item = storage_bytes(storage);
  const auto fits = [item](const void* data, int64_t stride) {
    return aligned(data, kPackBytes) && stride * item % kPackBytes == 0;
  };
  return storage != Storage::kFloat64 && fits(gradient.dy, gradient.dy_stride) &&
         fits(gradient.x, gradient.x_stride);
}

cudaError_t launch_weight_gradients(const WeightGradient* gradients, int count, Storage storage,
                                    cudaStream_t stream) {
  for (int first = 0; first < count; first += kGradientsPerLaunch) {
    Batch batch;
    batch.count = std::min(kGradientsPerLaunch, count - first);
    batch.first_tile[0] = 0;
    for (int i = 0; i < batch.count; ++i) {
      batch.gradients[i] = gradients[first + i];
      batch.first_tile[i + 1] = batch.first_tile[i] + tiles_of(batch.gradients[i]);
    }
    const cudaError_t error = storage == Storage::kBFloat16 ? launch<BFloat16>(batch, stream)
                                                            : launch<float>(batch, stream);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace dmamba::kernels
