// Products of activations and a weight in TF32 on compute capability 9.0, by a warpgroup, with the
// GELU that follows, its slope, or nothing.
//
// The copy engine brings pieces of 32 terms, many at a time. Products of TF32 cut their factors
// off, and take the second one by rows of terms alone; so a piece of the weight is rounded, and
// turned where it lies the other way, into one of two panels, while the piece before it is
// multiplied. Activations are rounded in registers, in which the first factor may come.
//
//   128 x 128    a warpgroup has 64 rows; 4 pieces, 160 KiB
//   128 x 64     likewise; 4 pieces, 112 KiB
//   64 x 64      a warpgroup has half of a piece's terms; 8 pieces, 144 KiB; where there are few
//                larger ones
//
// Where there are more tiles than multiprocessors, fewer pieces, so that two blocks share one.
//
// Floor: what a block reads of L2; at 3840 x 512 x 128 16 MB, 3 us.
#include <algorithm>
#include <limits>

#include "kernels/common/launch.cuh"
#include "kernels/common/tensor_map.cuh"
#include "kernels/common/tf32_panels.cuh"
#include "kernels/common/wgmma.cuh"
#include "kernels/linear/ending.cuh"
#include "kernels/linear/launch.h"

namespace dmamba::kernels {
namespace {

using namespace linear;

constexpr int kTerms = kTf32Terms, kSteps = kTerms / 8;  // of a piece

template <int kRowsOf, int kColumnsOf, bool kByTermsOf>
struct WideTile {
  using Number = float;
  static constexpr bool kSingle = true, kByTerms = kByTermsOf;
  static constexpr int kRows = kRowsOf, kColumns = kColumnsOf, kPack = 4;
  /// The warpgroups' sums are of other rows, or of other terms.
  static constexpr int kSummands = kRows == 64 ? 2 : 1;
  static constexpr int kMostStages = kRows == 64 ? 8 : 4;
  /// Of two blocks a multiprocessor: at most 112 KiB each.
  static constexpr int kSharedStages = kRows == 64 ? 6 : kColumns == 64 ? 4 : 2;

  struct Stage {
    alignas(1024) float x[kRows * kTerms];
    float weight[kColumns * kTerms];
  };
  struct Memory {
    alignas(1024) float rounded[2][kColumns * kTerms];
    Stage stages[kMostStages];
  };
  struct Barriers {
    uint64_t arrived[kMostStages];
  };
  static constexpr int bytes(int stages) {
    const int pieces = static_cast<int>(sizeof(float[2][kColumns * kTerms]) +
                                        static_cast<size_t>(stages) * sizeof(Stage));
    constexpr int kSums = kSummands * kRows * kColumns * 4;
    return pieces > kSums ? pieces : kSums;
  }
};

struct Maps {
  CUtensorMap x, weight;
};

#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)

/// Asks for a piece; by one thread.
template <class Tile>
__device__ __forceinline__ void send(typename Tile::Stage& stage, uint32_t barrier,
                                     const Maps& maps, int term, int row, int column) {
  expect_bytes(barrier, sizeof(stage.x) + sizeof(stage.weight));
  load_panel(shared_address(stage.x), maps.x, term, row, barrier);
  const uint32_t weight = shared_address(stage.weight);
  if constexpr (Tile::kByTerms) {
#pragma unroll
    for (int i = 0; i < Tile::kColumns; i += 32) {
      load_panel(weight + i * kTerms * 4, maps.weight, column + i, term, barrier);
    }
  } else {
    load_panel(weight, maps.weight, term, column, barrier);
  }
}

/// A piece of the weight, rounded, to a panel whose rows are its columns.
template <class Tile>
__device__ __forceinline__ void round_weight(float* rounded, const float* weight) {
  if constexpr (Tile::kByTerms) {
    turn_panels<Tile::kColumns, kThreads>(rounded, weight);
  } else {
    round_panel<Tile::kColumns, kThreads>(rounded, weight);
  }
}

/// The warp's fragments of a piece of x, as they lie there: of its 16 rows, from step `first` on.
template <int kCount>
__device__ __forceinline__ void load_x(uint32_t (&a)[kCount][4], const float* x, int row,
                                       int first) {
  const int lane = static_cast<int>(threadIdx.x) % 32, r = row + lane % 16;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    load_tiles(a[i], x + tf32_at(r, (2 * (first + i) + lane / 16) * 4));
  }
}

template <class Tile>
using WideSums = float[1][Tile::kColumns / 8][4];

/// The sums of a tile's products, of the warp's 16 rows.
template <class Tile>
__device__ __forceinline__ void walk(WideSums<Tile>& sums, typename Tile::Memory& memory,
                                     uint32_t arrived, const Maps& maps, int k, int stages,
                                     int first_row, int first_column) {
  constexpr int kCount = kSteps / Tile::kSummands;
  const int warp = __shfl_sync(~0U, threadIdx.x / 32, 0);  // known to be the warp's
  const int row = (Tile::kSummands == 2 ? warp % 4 : warp) * 16;
  const int first_step = Tile::kSummands == 2 ? warp / 4 * kCount : 0;
  const int steps = (k + kTerms - 1) / kTerms;
  int slot = 0;
  uint32_t parity = 0;
  clear_sums(sums[0]);
  for (int step = 0; step < steps; ++step) {
    auto& stage = memory.stages[slot];
    float* const rounded = memory.rounded[step % 2];
    uint32_t a[kCount][4];
    wait_for_barrier(arrived + slot * 8, parity);
    round_weight<Tile>(rounded, stage.weight);
    publish_to_products();
    load_x(a, stage.x, row, first_step);
    wait_for_products<0>();
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
#pragma unroll
      for (uint32_t& word : a[i]) word = to_tf32(__uint_as_float(word));
    }
    // The panel is there for all; the piece is used up, and so is the panel before it.
    __syncthreads();
    if (threadIdx.x == 0 && step + stages < steps) {
      send<Tile>(stage, arrived + slot * 8, maps, (step + stages) * kTerms, first_row,
                 first_column);
    }
    const uint64_t weight = panel_descriptor(shared_address(rounded)) + first_step * 32 / 16;
    begin_products();
#pragma unroll
    for (int i = 0; i < kCount; ++i) multiply_tf32(sums[0], a[i], weight + i * 32 / 16);
    commit_products();
    if (++slot == stages) slot = 0, parity ^= 1;
  }
  wait_for_products<0>(sums[0]);
}

#endif

template <class Tile, LinearKind kKind>
__global__ void __launch_bounds__(kThreads, 2)
    hopper_tf32_linear_kernel(const __grid_constant__ LinearParams p,
                              const __grid_constant__ Maps maps, int across, int stages) {
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  __shared__ typename Tile::Barriers barriers;
  auto& memory = *dynamic_shared<typename Tile::Memory, 1024>();
  const uint32_t arrived = shared_address(barriers.arrived);
  const int tile = static_cast<int>(blockIdx.x);
  const int first_row = tile / across * Tile::kRows;
  const int first_column = tile % across * Tile::kColumns;
  fetch_early(p.weight, int64_t{4} * p.n * p.k);
  if (threadIdx.x == 0) {
    for (int i = 0; i < stages; ++i) make_barrier(arrived + i * 8);
    publish_barriers();
  }
  __syncthreads();
  wait_for_stream();
  if (threadIdx.x == 0) {
    for (int i = 0; i < stages; ++i) {
      send<Tile>(memory.stages[i], arrived + i * 8, maps, i * kTerms, first_row, first_column);
    }
  }
  WideSums<Tile> sums;
  walk<Tile>(sums, memory, arrived, maps, p.k, stages, first_row, first_column);
  __syncthreads();  // the sums take the pieces' place
  const int warp = static_cast<int>(threadIdx.x) / 32;
  float* const staged = memory.rounded[0];
  leave_sums<Tile::kColumns>(staged, warp * 16, 0, sums);
  end_tile<Tile, kKind>(staged, {p, first_row, first_column});
#endif
}

template <class Tile, LinearKind kKind>
cudaError_t launch_tile(const LinearParams& p, cudaStream_t stream) {
  const int across = (p.n + Tile::kColumns - 1) / Tile::kColumns;
  const int64_t tiles = (p.rows + Tile::kRows - 1) / Tile::kRows * across;
  constexpr int64_t kMultiprocessors = 132;
  const int stages = std::min((p.k + kTerms - 1) / kTerms,
                              tiles > kMultiprocessors ? Tile::kSharedStages : Tile::kMostStages);
  Maps maps{};
  cudaError_t error = make_tensor_map<float>(maps.x, p.x, p.rows, p.k, Tile::kRows, p.x_stride);
  if (error == cudaSuccess) {
    error = Tile::kByTerms
                ? make_tensor_map<float>(maps.weight, p.weight, p.k, p.n, kTerms)
                : make_tensor_map<float>(maps.weight, p.weight, p.n, p.k, Tile::kColumns);
  }
  if (error != cudaSuccess) return error;
  return launch_early(hopper_tf32_linear_kernel<Tile, kKind>, static_cast<unsigned>(tiles),
                      kThreads, Tile::bytes(stages), stream, p, maps, across, stages);
}

template <LinearKind kKind>
cudaError_t launch_kind(const LinearParams& p, cudaStream_t stream) {
  constexpr bool kByTerms = weight_by_terms(kKind);
  const LinearTile tile = hopper_tf32_linear_tile(p.rows, p.n);
  if (tile.rows == 64) return launch_tile<WideTile<64, 64, kByTerms>, kKind>(p, stream);
  return tile.columns == 64 ? launch_tile<WideTile<128, 64, kByTerms>, kKind>(p, stream)
                            : launch_tile<WideTile<128, 128, kByTerms>, kKind>(p, stream);
}

}  // namespace

cudaError_t launch_hopper_tf32_linear(const LinearParams& p, LinearKind kind, cudaStream_t stream) {
  constexpr int64_t kMostRows = std::numeric_limits<int>::max() / 256;  // tiles of all columns
  if (!linear_fits(p) || p.storage != Storage::kFloat32) return cudaErrorInvalidValue;
  if (p.rows == 0 || p.n == 0) return cudaSuccess;
  if (p.rows > kMostRows || p.n > kMostRows) return cudaErrorInvalidValue;
  switch (kind) {
    case LinearKind::kGelu:
      return launch_kind<LinearKind::kGelu>(p, stream);
    case LinearKind::kSlope:
      return launch_kind<LinearKind::kSlope>(p, stream);
    case LinearKind::kProduct:
      return launch_kind<LinearKind::kProduct>(p, stream);
    default:
      return launch_kind<LinearKind::kProductByTerms>(p, stream);
  }
}

}  // namespace dmamba::kernels
