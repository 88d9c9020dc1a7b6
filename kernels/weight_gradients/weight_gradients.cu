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
#include <algorithm>

#include "kernels/common/alignment.h"
#include "kernels/common/copy.cuh"
#include "kernels/common/mma.cuh"
#include "kernels/weight_gradients/tiles.cuh"

namespace dmamba::kernels {
namespace {

using namespace weight_gradients;

constexpr int kStages = 4, kPackBytes = 16;
constexpr int kRowTiles = 4, kColumnTiles = 4;  // of a warp: 16 rows, 8 columns each

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

template <class T>
__global__ void __launch_bounds__(kThreads, 2)
    weight_gradients_kernel(const __grid_constant__ Batch batch, int blocks) {
#if __CUDA_ARCH__ >= 900
  constexpr int kTokens = Piece<T>::kTokens;
  auto* stages = dynamic_shared<Stage<T>>();
  auto* tile_sums = dynamic_shared<float>();

  const Place at(batch, blocks, kTokens);
  const WeightGradient& g = batch.gradients[at.gradient];
  const int steps = at.tokens <= 0 ? 0 : static_cast<int>((at.tokens + kTokens - 1) / kTokens);
  const Columns<T> dy{static_cast<const T*>(g.dy) + at.begin * g.dy_stride + at.first_row,
                      g.dy_stride, at.rows};
  const Columns<T> x{static_cast<const T*>(g.x) + at.begin * g.x_stride + at.first_column,
                     g.x_stride, at.columns};
  const auto send = [&](int step) {
    if (step < steps) {
      Stage<T>& stage = stages[step % kStages];
      dy.send(stage.dy, int64_t{step} * kTokens, at.tokens);
      x.send(stage.x, int64_t{step} * kTokens, at.tokens);
    }
    commit_copies();
  };

  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int row = warp / 4 * 64, column = warp % 4 * 32;
  const bool works = row < at.rows && column < at.columns;
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
  leave_sums<kTile>(tile_sums, row, column, sums);
  add_over_cluster(tile_sums, batch, at, blocks);
#endif
}

template <class T>
cudaError_t launch(const Batch& batch, cudaStream_t stream) {
  const int blocks = blocks_of_cluster(batch);
  return launch_tiles(weight_gradients_kernel<T>, batch, blocks, kSharedBytes<T>, stream, batch,
                      blocks);
}

}  // namespace

bool weight_gradients_run() { return compiled_for_clusters(weight_gradients_kernel<float>); }

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
    const Batch batch = make_batch(gradients + first, count - first);
    const cudaError_t error = storage == Storage::kBFloat16 ? launch<BFloat16>(batch, stream)
                                                            : launch<float>(batch, stream);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace dmamba::kernels
