// The gradients of weights in TF32 on compute capability 9.0: the same tiles and clusters as
// weight_gradients.cu, with products of a warpgroup and the copy engine's loads.
//
// A piece is 32 tokens of 128 columns of dy and of x, in panels of 32 columns as they come, tokens
// as rows. Products of TF32 take both factors by rows of terms, which tokens are not here: dy's
// fragments come through registers, x is turned into a panel of its columns while the piece before
// it is multiplied (tf32_panels.cuh).
//
//   shared memory   2 pieces, 2 turned panels, 96 KiB; the sums of a tile take their place
//   a warp          16 x 128 of the tile, 64 sums a lane; two blocks a multiprocessor
#include "kernels/common/tensor_map.cuh"
#include "kernels/common/tf32_panels.cuh"
#include "kernels/common/wgmma.cuh"
#include "kernels/weight_gradients/hopper_launch.cuh"
#include "kernels/weight_gradients/tiles.cuh"

namespace dmamba::kernels {
namespace {

using namespace weight_gradients;

constexpr int kPieceTokens = kTf32Terms, kSteps = kPieceTokens / 8, kStages = 2;
constexpr int kPanelWidth = 32, kPanels = kTile / kPanelWidth;

using Panel = float[kPieceTokens * kPanelWidth];

struct Piece {
  Panel dy[kPanels];
  Panel x[kPanels];
};

struct Memory {
  union {
    struct {
      alignas(1024) Piece pieces[kStages];
      float turned[kStages][kTile * kPieceTokens];
    };
    float sums[kTile * kTile];
  };
  alignas(8) uint64_t arrived[kStages];
};

/// A warp's 16 rows are packs of a panel's four columns: two neighbours and the fourth after each,
/// which lie in different banks for the four tokens of a fragment.
struct PackedRows {
  static __device__ __forceinline__ int at(int row) {
    const int pack = row % kPanelWidth / 4;
    return row / kPanelWidth * kPanelWidth + pack % 4 / 2 * 16 + pack % 2 * 8 + pack / 4 * 4 +
           row % 4;
  }
};

#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)

/// Asks for a piece; by one thread.
__device__ __forceinline__ void send(Memory& memory, const Maps& maps, const Place& at, int step) {
  const uint32_t barrier = shared_address(&memory.arrived[step % kStages]);
  Piece& piece = memory.pieces[step % kStages];
  const int token = static_cast<int>(at.begin) + step * kPieceTokens;
  const int dy_panels = min(kPanels, (at.rows + kPanelWidth - 1) / kPanelWidth);
  const int x_panels = min(kPanels, (at.columns + kPanelWidth - 1) / kPanelWidth);
  expect_bytes(barrier, static_cast<uint32_t>((dy_panels + x_panels) * sizeof(Panel)));
  for (int i = 0; i < dy_panels; ++i) {
    load_panel(shared_address(piece.dy[i]), maps.dy[at.gradient], at.first_row + i * kPanelWidth,
               token, barrier);
  }
  for (int i = 0; i < x_panels; ++i) {
    load_panel(shared_address(piece.x[i]), maps.x[at.gradient], at.first_column + i * kPanelWidth,
               token, barrier);
  }
}

/// The warp's fragments of a piece of dy, as they lie there.
__device__ __forceinline__ void load_dy(float (&a)[kSteps][4], const Piece& piece) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const float* panel = piece.dy[warp / 2];
  const int column = (warp % 2 * 2 + lane / 16 * 4) * 4 + lane / 4 % 4;
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      a[step][i] = panel[tf32_at(8 * step + i / 2 * 4 + lane % 4, column + i % 2 * 4)];
    }
  }
}

/// The sums of a block's pieces, of the warp's rows. Rows and columns that don't exist may be
/// anything; nobody reads their sums.
__device__ __forceinline__ void walk(float (&sums)[16][4], Memory& memory, const Maps& maps,
                                     const Place& at, int steps) {
  clear_sums(sums);
  for (int step = 0; step < steps; ++step) {
    const Piece& piece = memory.pieces[step % kStages];
    float* const turned = memory.turned[step % kStages];
    float dy[kSteps][4];
    uint32_t a[kSteps][4];
    wait_for_barrier(shared_address(&memory.arrived[step % kStages]), step / kStages % 2);
    turn_panels<kTile, kThreads>(turned, piece.x[0]);
    publish_to_products();
    load_dy(dy, piece);
    wait_for_products<0>();
#pragma unroll
    for (int i = 0; i < 4 * kSteps; ++i) a[i / 4][i % 4] = to_tf32(dy[i / 4][i % 4]);
    // The panel is there for all; the piece is used up, and so is the panel before it.
    __syncthreads();
    if (threadIdx.x == 0 && step + kStages < steps) send(memory, maps, at, step + kStages);
    const uint64_t x = panel_descriptor(shared_address(turned));
    begin_products();
#pragma unroll
    for (int i = 0; i < kSteps; ++i) multiply_tf32(sums, a[i], x + i * 32 / 16);
    commit_products();
  }
  wait_for_products<0>(sums);
  __syncthreads();  // the sums take the pieces' place
}

#endif

__global__ void __launch_bounds__(kThreads, 2)
    hopper_tf32_weight_gradients_kernel(const __grid_constant__ Batch batch,
                                        const __grid_constant__ Maps maps, int blocks) {
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  auto& memory = *dynamic_shared<Memory, 1024>();
  const Place at(batch, blocks, kPieceTokens);
  const int steps =
      at.tokens <= 0 ? 0 : static_cast<int>((at.tokens + kPieceTokens - 1) / kPieceTokens);
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) make_barrier(shared_address(&memory.arrived[i]));
    publish_barriers();
    for (int step = 0; step < min(steps, kStages); ++step) send(memory, maps, at, step);
  }
  __syncthreads();
  float sums[1][16][4];
  walk(sums[0], memory, maps, at, steps);
  leave_sums<kTile>(memory.sums, static_cast<int>(threadIdx.x) / 32 * 16, 0, sums);
  add_over_cluster<PackedRows>(memory.sums, batch, at, blocks);
#endif
}

}  // namespace

cudaError_t launch_hopper_tf32_weight_gradients(const WeightGradient* gradients, int count,
                                                cudaStream_t stream) {
  return launch_hopper_batches<float>(hopper_tf32_weight_gradients_kernel, gradients, count,
                                      kPieceTokens, sizeof(Memory), stream);
}

}  // namespace dmamba::kernels
