// The gradients of weights in TF32 on compute capability 9.0: the same tiles and clusters as
// weight_gradients.cu, with products of a warpgroup.
//
// Those take float32 only by rows of terms, and the terms are tokens, which lie the other way. So a
// piece of 32 tokens goes through registers: of dy a lane loads what its own fragments are,
// straight from global memory, since no other warp has the same 16 columns; of x a thread loads
// four tokens of a column, which are 16 bytes of its row in shared memory. Rounding costs nothing
// extra there. The next piece is loaded while this one is multiplied.
//
//   shared memory   2 pieces of x, 32 KiB; the sums of a tile take their place, 64 KiB
//   a warp          16 x 128 of the tile, 64 sums a lane; two blocks a multiprocessor
//
// The columns of dy are taken in pairs: rows g and g + 8 of a fragment are columns 2 g and 2 g + 1.
#include "kernels/common/mma.cuh"
#include "kernels/common/wgmma.cuh"
#include "kernels/weight_gradients/tiles.cuh"

namespace dmamba::kernels {
namespace {

using namespace weight_gradients;

constexpr int kPieceTokens = 32, kSteps = kPieceTokens / 8, kStages = 2;
constexpr int kQuads = kPieceTokens / 4 / 2;  // of a thread: four tokens of a column each
constexpr int kMostBlocks = 264;

union Memory {
  alignas(1024) float pieces[kStages][kTile * kPieceTokens];  // a row is a column of x
  float sums[kTile * kTile];
};

#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)

/// A thread's numbers of a piece as they lie in memory. Tokens that don't exist are zero; columns
/// that don't exist may be anything, since nobody reads their sums.
struct Loaded {
  float2 dy[2 * kSteps];  // of every fourth token, from lane % 4 on
  float x[kQuads][4];
};

/// Where a thread's numbers of its block's pieces come from.
class Source {
 public:
  __device__ __forceinline__ Source(const WeightGradient& g, const Place& at)
      : dy_stride_(g.dy_stride), x_stride_(g.x_stride), rows_(at.rows) {
    int row = this->row(), column = static_cast<int>(threadIdx.x) % kTile;
    if (row >= at.rows) row = 0;
    if (column >= at.columns) column = 0;
    dy_ = static_cast<const float*>(g.dy) + (at.begin + token()) * dy_stride_ + at.first_row + row;
    x_ = static_cast<const float*>(g.x) + (at.begin + 4 * quad()) * x_stride_ + at.first_column +
         column;
  }

  /// The next piece, of which so many tokens exist.
  __device__ __forceinline__ void load(Loaded& to, int64_t tokens) {
    if (tokens >= kPieceTokens && (rows_ >= kTile || rows_ % 2 == 0)) {
      load_whole(to);
    } else {
      load_some(to, static_cast<int>(min(int64_t{kPieceTokens}, tokens)));
    }
  }

 private:
  static __device__ __forceinline__ int token() { return static_cast<int>(threadIdx.x) % 4; }
  static __device__ __forceinline__ int quad() { return static_cast<int>(threadIdx.x) / kTile; }
  static __device__ __forceinline__ int row() {
    return static_cast<int>(threadIdx.x) / 32 * 16 + static_cast<int>(threadIdx.x) % 32 / 4 * 2;
  }

  __device__ __forceinline__ void load_whole(Loaded& to) {
#pragma unroll
    for (int i = 0; i < 2 * kSteps; ++i) {
      to.dy[i] = *reinterpret_cast<const float2*>(dy_);
      dy_ += 4 * dy_stride_;
    }
#pragma unroll
    for (int i = 0; i < kQuads; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        to.x[i][j] = *x_;
        x_ += x_stride_;
      }
      x_ += 4 * x_stride_;  // the other half's
    }
  }

  __device__ __forceinline__ void load_some(Loaded& to, int tokens) {
    const bool pair_exists = row() + 1 < rows_;
#pragma unroll
    for (int i = 0; i < 2 * kSteps; ++i) {
      to.dy[i] = make_float2(0.0F, 0.0F);
      if (4 * i + token() < tokens) {
        to.dy[i].x = dy_[0];
        if (pair_exists) to.dy[i].y = dy_[1];
      }
      dy_ += 4 * dy_stride_;
    }
#pragma unroll
    for (int i = 0; i < kQuads; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        to.x[i][j] = 8 * i + 4 * quad() + j < tokens ? *x_ : 0.0F;
        x_ += x_stride_;
      }
      x_ += 4 * x_stride_;
    }
  }

  int64_t dy_stride_, x_stride_;
  int rows_;
  const float *dy_, *x_;
};

/// x's numbers to a piece's panel.
__device__ __forceinline__ void store_x(float* piece, const Loaded& from) {
  const int column = static_cast<int>(threadIdx.x) % kTile;
  const int quad = static_cast<int>(threadIdx.x) / kTile;
#pragma unroll
  for (int i = 0; i < kQuads; ++i) {
    uint4 words;
    words.x = to_tf32(from.x[i][0]), words.y = to_tf32(from.x[i][1]);
    words.z = to_tf32(from.x[i][2]), words.w = to_tf32(from.x[i][3]);
    const int pack = (2 * i + quad) ^ (column & 7);
    *reinterpret_cast<uint4*>(piece + column * kPieceTokens + pack * 4) = words;
  }
}

/// dy's numbers to the fragments of a piece's steps.
__device__ __forceinline__ void round_dy(uint32_t (&a)[kSteps][4], const Loaded& from) {
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      a[step][2 * half] = to_tf32(from.dy[2 * step + half].x);
      a[step][2 * half + 1] = to_tf32(from.dy[2 * step + half].y);
    }
  }
}

/// Begins sums += dy^T x over a piece, for the warpgroup's 64 rows.
__device__ __forceinline__ void multiply(float (&sums)[16][4], const uint32_t (&a)[kSteps][4],
                                         const float* piece) {
  const uint64_t x = panel_descriptor(shared_address(piece));
  begin_products();
#pragma unroll
  for (int step = 0; step < kSteps; ++step) multiply_tf32(sums, a[step], x + step * 32 / 16);
  commit_products();
}

#endif

__global__ void __launch_bounds__(kThreads, 2)
    hopper_tf32_weight_gradients_kernel(const __grid_constant__ Batch batch, int blocks) {
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  auto& memory = *dynamic_shared<Memory, 1024>();
  const Place at(batch, blocks, kPieceTokens);
  const int steps =
      at.tokens <= 0 ? 0 : static_cast<int>((at.tokens + kPieceTokens - 1) / kPieceTokens);
  const int group = __shfl_sync(~0U, threadIdx.x / 128, 0);  // known to be the warp's
  Source source(batch.gradients[at.gradient], at);
  const auto walk = [&]<bool kWorks>(float(&sums)[16][4]) {
    Loaded next;
    if (steps > 0) source.load(next, at.tokens);
    for (int step = 0; step < steps; ++step) {
      float* piece = memory.pieces[step % kStages];
      uint32_t a[kSteps][4];
      store_x(piece, next);
      publish_to_products();  // before the next loads, which it would wait for
      if constexpr (kWorks) {
        wait_for_products<0>();
        round_dy(a, next);
      }
      if (step + 1 < steps) source.load(next, at.tokens - int64_t{step + 1} * kPieceTokens);
      // The piece is there for all, and nobody's products read the one before it any more.
      __syncthreads();
      if constexpr (kWorks) multiply(sums, a, piece);
    }
    if constexpr (kWorks) wait_for_products<0>(sums);
    __syncthreads();  // the sums take the pieces' place
  };
  float sums[1][16][4] = {};
  if (group * 64 < at.rows) {
    walk.template operator()<true>(sums[0]);
    leave_sums<kTile>(memory.sums, static_cast<int>(threadIdx.x) / 32 * 16, 0, sums);
  } else {
    walk.template operator()<false>(sums[0]);
  }
  add_over_cluster<PairedRows>(memory.sums, batch, at, blocks);
#endif
}

}  // namespace

cudaError_t launch_hopper_tf32_weight_gradients(const WeightGradient* gradients, int count,
                                                cudaStream_t stream) {
  for (int first = 0; first < count; first += kGradientsPerLaunch) {
    const Batch batch = make_batch(gradients + first, count - first);
    const int blocks = blocks_of_cluster(batch, kMostBlocks);
    const cudaError_t error = launch_tiles(hopper_tf32_weight_gradients_kernel, batch, blocks,
                                           sizeof(Memory), stream, batch, blocks);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace dmamba::kernels
