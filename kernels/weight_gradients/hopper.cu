// The gradients of weights in bfloat16 on compute capability 9.0: the same tiles and clusters as
// weight_gradients.cu, with products of a warpgroup from shared memory and the copy engine's loads,
// which leave the issue slots to the kernels beside.
//
// A piece is 64 tokens of 128 columns of dy and of x, in panels of 64 columns as they come, tokens
// as rows: both factors are taken by columns. Each of the two warpgroups has 64 rows of the tile.
// The first thread asks for a piece when all working warps have left the one that lay there.
//
//   shared memory   3 pieces, 96 KiB; the sums of a tile take their place
//   a warp          16 x 128 of the tile, 64 sums a lane; two blocks a multiprocessor
#include "kernels/common/tensor_map.cuh"
#include "kernels/common/wgmma.cuh"
#include "kernels/weight_gradients/hopper_launch.cuh"
#include "kernels/weight_gradients/tiles.cuh"

namespace dmamba::kernels {
namespace {

using namespace weight_gradients;

constexpr int kPieceTokens = 64, kStages = 3, kPanels = kTile / kPanelColumns;
constexpr uint32_t kPanelBytes = 2 * kPieceTokens * kPanelColumns;

struct Piece {
  unsigned char dy[kPanels][kPanelBytes];
  unsigned char x[kPanels][kPanelBytes];
};

struct Memory {
  union {
    alignas(1024) Piece pieces[kStages];
    float sums[kTile * kTile];
  };
  alignas(8) uint64_t arrived[kStages];
  uint64_t left[kStages];
};

#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)

/// The pieces of a block on their way through shared memory.
class Pipeline {
 public:
  __device__ __forceinline__ Pipeline(Memory& memory, const Maps& maps, const Place& at)
      : memory_(memory),
        dy_(maps.dy[at.gradient]),
        x_(maps.x[at.gradient]),
        at_(at),
        steps_(at.tokens <= 0 ? 0
                              : static_cast<int>((at.tokens + kPieceTokens - 1) / kPieceTokens)) {}

  __device__ __forceinline__ int steps() const { return steps_; }
  __device__ __forceinline__ int row_panels() const {
    return min(kPanels, (at_.rows + kPanelColumns - 1) / kPanelColumns);
  }

  /// By all threads, once.
  __device__ __forceinline__ void begin() {
    if (threadIdx.x == 0) {
      for (int i = 0; i < kStages; ++i) {
        make_barrier(shared_address(&memory_.arrived[i]));
        make_barrier(shared_address(&memory_.left[i]), 4 * row_panels());
      }
      publish_barriers();
      for (int step = 0; step < min(steps_, kStages); ++step) send(step);
    }
    __syncthreads();
  }

  __device__ __forceinline__ const Piece& wait(int step) {
    wait_for_barrier(shared_address(&memory_.arrived[step % kStages]), step / kStages % 2);
    return memory_.pieces[step % kStages];
  }

  /// This warp has done with a piece; the first thread asks for the one that takes its place.
  __device__ __forceinline__ void leave(int step) {
    const uint32_t left = shared_address(&memory_.left[step % kStages]);
    if (threadIdx.x % 32 == 0) arrive(left);
    if (threadIdx.x == 0 && step + kStages < steps_) {
      wait_for_barrier(left, step / kStages % 2);
      send(step + kStages);
    }
    __syncwarp();
  }

 private:
  __device__ __forceinline__ void send(int step) {
    const uint32_t barrier = shared_address(&memory_.arrived[step % kStages]);
    Piece& piece = memory_.pieces[step % kStages];
    const int token = static_cast<int>(at_.begin) + step * kPieceTokens;
    const int x_panels = min(kPanels, (at_.columns + kPanelColumns - 1) / kPanelColumns);
    expect_bytes(barrier, (row_panels() + x_panels) * kPanelBytes);
    for (int i = 0; i < row_panels(); ++i) {
      load_panel(shared_address(piece.dy[i]), dy_, at_.first_row + i * kPanelColumns, token,
                 barrier);
    }
    for (int i = 0; i < x_panels; ++i) {
      load_panel(shared_address(piece.x[i]), x_, at_.first_column + i * kPanelColumns, token,
                 barrier);
    }
  }

  Memory& memory_;
  const CUtensorMap& dy_;
  const CUtensorMap& x_;
  const Place& at_;
  int steps_;
};

/// Begins sums += dy^T x over a piece, for the warpgroup's 64 rows. Columns that don't exist may be
/// anything; nobody reads their sums.
__device__ __forceinline__ void multiply(float (&sums)[16][4], const Piece& piece, int group) {
  const uint64_t dy = panel_descriptor(shared_address(piece.dy[group]));
  const uint64_t x = panel_descriptor(shared_address(piece.x), kPanelBytes);
  begin_products();
#pragma unroll
  for (int term = 0; term < kPieceTokens; term += 16) {
    multiply_panels<true, true>(sums, dy + term * 128 / 16, x + term * 128 / 16);
  }
  commit_products();
}

#endif

__global__ void __launch_bounds__(kThreads, 2)
    hopper_weight_gradients_kernel(const __grid_constant__ Batch batch,
                                   const __grid_constant__ Maps maps, int blocks) {
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  auto& memory = *dynamic_shared<Memory, 1024>();
  const Place at(batch, blocks, kPieceTokens);
  Pipeline pipeline(memory, maps, at);
  pipeline.begin();
  const int group = __shfl_sync(~0U, threadIdx.x / 128, 0);  // known to be the warp's
  if (group < pipeline.row_panels()) {
    float sums[1][16][4] = {};
    for (int step = 0; step < pipeline.steps(); ++step) {
      multiply(sums[0], pipeline.wait(step), group);
      if (step == 0) continue;
      wait_for_products<1>();
      pipeline.leave(step - 1);
    }
    wait_for_products<0>(sums[0]);
    // All that work have done with the last pieces: the sums come in their place.
    wait_for_threads<1>(128 * pipeline.row_panels());
    leave_sums<kTile>(memory.sums, static_cast<int>(threadIdx.x) / 32 * 16, 0, sums);
  }
  add_over_cluster(memory.sums, batch, at, blocks);
#endif
}

}  // namespace

cudaError_t launch_hopper_weight_gradients(const WeightGradient* gradients, int count,
                                           cudaStream_t stream) {
  return launch_hopper_batches<__nv_bfloat16>(hopper_weight_gradients_kernel, gradients, count,
                                              kPieceTokens, sizeof(Memory), stream);
}

}  // namespace dmamba::kernels
