// Products of activations and a weight on compute capability 9.0, by a warpgroup, with the GELU
// that follows, its slope, or nothing.
//
// The copy engine brings pieces of 128 bytes of every row, many at a time. bfloat16 is multiplied
// where it lies. Products of TF32 cut their factors off, and take the second one by rows of terms
// alone; so a piece of the weight is rounded, and turned where it lies the other way, into one of
// two panels, while the piece before it is multiplied (tf32_panels.cuh); activations are rounded in
// registers, in which the first factor may come.
//
//   128 x 128    a warpgroup has 64 rows
//   128 x 64     likewise
//   64 x 64      a warpgroup has half of a piece's terms; where there are few larger ones
//
// Where there are more tiles than multiprocessors, fewer pieces, so that two blocks share one.
// Floor: what a block reads of L2; at 3840 x 512 x 128 16 MB in TF32, 3 us.
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

constexpr int kRowBytes = 128, kSteps = kRowBytes / 32;  // of a piece
constexpr int kMultiprocessors = 132;

template <class T, int kRowsOf, int kColumnsOf, bool kByTermsOf>
struct WideTile {
  using Number = T;
  static constexpr bool kSingle = sizeof(T) == 4, kByTerms = kByTermsOf;
  static constexpr int kRows = kRowsOf, kColumns = kColumnsOf;
  static constexpr int kPack = kPackBytes / static_cast<int>(sizeof(T));
  static constexpr int kTerms = kRowBytes / static_cast<int>(sizeof(T));
  /// The warpgroups' sums are of other rows, or of other terms.
  static constexpr int kSummands = kRows == 64 ? 2 : 1;

  /// Shared memory: two rounded panels in TF32, then pieces; or the sums.
  struct Stage {
    alignas(1024) T x[kRows * kTerms];
    T weight[kColumns * kTerms];
  };
  static constexpr int kStageBytes = sizeof(Stage);
  static constexpr int kRoundedBytes = kSingle ? 2 * kColumns * kRowBytes : 0;
  static constexpr int kSumsBytes = kSummands * kRows * kColumns * 4;
  static constexpr int stages_in(int bytes) { return (bytes - kRoundedBytes) / kStageBytes; }
  static constexpr int kMostStages = std::min(8, stages_in(192 << 10));
  static constexpr int kSharedStages = std::min(8, stages_in(112 << 10));  // of two blocks
  static constexpr int bytes(int stages) {
    return std::max(kRoundedBytes + stages * kStageBytes, kSumsBytes);
  }
};

struct Maps {
  CUtensorMap x, weight;
};

#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)

/// A block's pieces on their way through shared memory, `stages` of them at a time.
template <class Tile>
class Pipeline {
 public:
  using Stage = typename Tile::Stage;

  __device__ __forceinline__ Pipeline(unsigned char* memory, uint32_t barriers, const Maps& maps,
                                      int stages, int first_row, int first_column)
      : memory_(memory + Tile::kRoundedBytes),
        barriers_(barriers),
        maps_(maps),
        stages_(stages),
        first_row_(first_row),
        first_column_(first_column) {}

  /// By one thread: asks for the first pieces.
  __device__ __forceinline__ void begin() const {
    for (int i = 0; i < stages_; ++i) send(i, i);
  }
  /// The next piece, when it is there.
  __device__ __forceinline__ const Stage& wait() {
    const int slot = slot_;
    wait_for_barrier(barriers_ + slot * 8, parity_);
    if (++slot_ == stages_) slot_ = 0, parity_ ^= 1;
    return stage(slot);
  }
  __device__ __forceinline__ int stages() const { return stages_; }

  /// By one thread: asks for piece `step`, in the place of one that all have left.
  __device__ __forceinline__ void send(int step, int slot) const {
    Stage& to = stage(slot);
    const uint32_t barrier = barriers_ + slot * 8;
    const int term = step * Tile::kTerms;
    expect_bytes(barrier, Tile::kStageBytes);
    load_panel(shared_address(to.x), maps_.x, term, first_row_, barrier);
    if constexpr (Tile::kByTerms) {
#pragma unroll
      for (int i = 0; i < Tile::kColumns; i += Tile::kTerms) {
        load_panel(shared_address(to.weight + i * Tile::kTerms), maps_.weight, first_column_ + i,
                   term, barrier);
      }
    } else {
      load_panel(shared_address(to.weight), maps_.weight, term, first_column_, barrier);
    }
  }
  /// The slot of the piece that wait() returned last.
  __device__ __forceinline__ int last_slot() const { return (slot_ == 0 ? stages_ : slot_) - 1; }

 private:
  __device__ __forceinline__ Stage& stage(int slot) const {
    return *reinterpret_cast<Stage*>(memory_ + slot * Tile::kStageBytes);
  }

  unsigned char* memory_;
  uint32_t barriers_;
  const Maps& maps_;
  int stages_, first_row_, first_column_, slot_ = 0;
  uint32_t parity_ = 0;
};

/// The rows of a tile that a warp's sums are of, and the first of a piece's steps.
template <class Tile>
struct Part {
  int warp = __shfl_sync(~0U, threadIdx.x / 32, 0);  // known to be the warp's
  int row = (Tile::kSummands == 2 ? warp % 4 : warp) * 16;
  int first_step = Tile::kSummands == 2 ? warp / 4 * (kSteps / 2) : 0;
  static constexpr int kCount = kSteps / Tile::kSummands;
};

template <class Tile>
using WideSums = float[1][Tile::kColumns / 8][4];

/// The sums of a tile's products in bfloat16.
template <class Tile>
__device__ __forceinline__ void walk(WideSums<Tile>& sums, Pipeline<Tile>& pipeline, int steps,
                                     bfloat16*) {
  constexpr int kNextWeight = (Tile::kByTerms ? 16 * kRowBytes : 32) / 16;
  const Part<Tile> part;
  int slot_before = 0;
  clear_sums(sums[0]);
  for (int step = 0; step < steps; ++step) {
    const auto& stage = pipeline.wait();
    const uint64_t x =
        panel_descriptor(shared_address(stage.x + part.row / 64 * 64 * Tile::kTerms));
    const uint64_t weight =
        panel_descriptor(shared_address(stage.weight), Tile::kTerms * kRowBytes);
    begin_products();
#pragma unroll
    for (int i = 0; i < part.kCount; ++i) {
      multiply_panels<false, Tile::kByTerms>(sums[0], x + (part.first_step + i) * 32 / 16,
                                             weight + (part.first_step + i) * kNextWeight);
    }
    commit_products();
    const int next = step - 1 + pipeline.stages();  // in the place of the one before
    if (step > 0 && next < steps) {
      wait_for_products<1>();
      __syncthreads();
      if (threadIdx.x == 0) pipeline.send(next, slot_before);
    }
    slot_before = pipeline.last_slot();
  }
  wait_for_products<0>(sums[0]);
}

/// The warp's fragments of a piece of x, as they lie there.
template <class Tile>
__device__ __forceinline__ void load_x(uint32_t (&a)[Part<Tile>::kCount][4], const float* x,
                                       const Part<Tile>& part) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int i = 0; i < part.kCount; ++i) {
    load_tiles(a[i],
               x + tf32_at(part.row + lane % 16, (2 * (part.first_step + i) + lane / 16) * 4));
  }
}

/// The same in TF32; `rounded` is the first of two panels.
template <class Tile>
__device__ __forceinline__ void walk(WideSums<Tile>& sums, Pipeline<Tile>& pipeline, int steps,
                                     float* rounded) {
  const Part<Tile> part;
  clear_sums(sums[0]);
  for (int step = 0; step < steps; ++step) {
    float* const panel = rounded + step % 2 * (Tile::kColumns * Tile::kTerms);
    uint32_t a[part.kCount][4];
    const auto& stage = pipeline.wait();
    if constexpr (Tile::kByTerms) {
      turn_panels<Tile::kColumns, kThreads>(panel, stage.weight);
    } else {
      round_panel<Tile::kColumns, kThreads>(panel, stage.weight);
    }
    publish_to_products();
    load_x(a, stage.x, part);
    wait_for_products<0>();
#pragma unroll
    for (int i = 0; i < part.kCount; ++i) {
#pragma unroll
      for (uint32_t& word : a[i]) word = to_tf32(__uint_as_float(word));
    }
    // The panel is there for all; the piece is used up, and so is the panel before it.
    __syncthreads();
    const int next = step + pipeline.stages();
    if (threadIdx.x == 0 && next < steps) pipeline.send(next, pipeline.last_slot());
    const uint64_t weight = panel_descriptor(shared_address(panel)) + part.first_step * 32 / 16;
    begin_products();
#pragma unroll
    for (int i = 0; i < part.kCount; ++i) multiply_tf32(sums[0], a[i], weight + i * 32 / 16);
    commit_products();
  }
  wait_for_products<0>(sums[0]);
}

#endif

template <class Tile, LinearKind kKind>
__global__ void __launch_bounds__(kThreads, 2)
    hopper_linear_kernel(const __grid_constant__ LinearParams p, const __grid_constant__ Maps maps,
                         int across, int stages) {
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  __shared__ uint64_t arrived[Tile::kMostStages];
  unsigned char* const memory = dynamic_shared<unsigned char, 1024>();
  const uint32_t barriers = shared_address(arrived);
  const int tile = static_cast<int>(blockIdx.x);
  const int first_row = tile / across * Tile::kRows;
  const int first_column = tile % across * Tile::kColumns;
  Pipeline<Tile> pipeline(memory, barriers, maps, stages, first_row, first_column);
  fetch_early(p.weight, static_cast<int64_t>(sizeof(typename Tile::Number)) * p.n * p.k);
  if (threadIdx.x == 0) {
    for (int i = 0; i < stages; ++i) make_barrier(barriers + i * 8);
    publish_barriers();
  }
  __syncthreads();
  wait_for_stream();
  if (threadIdx.x == 0) pipeline.begin();
  WideSums<Tile> sums;
  walk<Tile>(sums, pipeline, (p.k + Tile::kTerms - 1) / Tile::kTerms,
             reinterpret_cast<typename Tile::Number*>(memory));
  __syncthreads();  // the sums take the pieces' place
  auto* const staged = reinterpret_cast<float*>(memory);
  leave_sums<Tile::kColumns>(staged, static_cast<int>(threadIdx.x) / 32 * 16, 0, sums);
  end_tile<Tile, kKind>(staged, {p, first_row, first_column});
#endif
}

template <class Tile, LinearKind kKind>
cudaError_t launch_tile(const LinearParams& p, cudaStream_t stream) {
  using T = typename Tile::Number;
  const int across = (p.n + Tile::kColumns - 1) / Tile::kColumns;
  const int64_t tiles = tiles_of({Tile::kRows, Tile::kColumns}, p.rows, p.n);
  const int stages = std::min((p.k + Tile::kTerms - 1) / Tile::kTerms,
                              tiles > kMultiprocessors ? Tile::kSharedStages : Tile::kMostStages);
  Maps maps{};
  cudaError_t error = make_tensor_map<T>(maps.x, p.x, p.rows, p.k, Tile::kRows, p.x_stride);
  if (error == cudaSuccess) {
    error = Tile::kByTerms ? make_tensor_map<T>(maps.weight, p.weight, p.k, p.n, Tile::kTerms)
                           : make_tensor_map<T>(maps.weight, p.weight, p.n, p.k, Tile::kColumns);
  }
  if (error != cudaSuccess) return error;
  return launch_early(hopper_linear_kernel<Tile, kKind>, static_cast<unsigned>(tiles), kThreads,
                      Tile::bytes(stages), stream, p, maps, across, stages);
}

template <class T, LinearKind kKind>
cudaError_t launch_stored(const LinearParams& p, cudaStream_t stream) {
  constexpr bool kByTerms = weight_by_terms(kKind);
  const LinearTile tile = hopper_linear_tile(p.rows, p.n);
  if (tile.rows == 64) return launch_tile<WideTile<T, 64, 64, kByTerms>, kKind>(p, stream);
  return tile.columns == 64 ? launch_tile<WideTile<T, 128, 64, kByTerms>, kKind>(p, stream)
                            : launch_tile<WideTile<T, 128, 128, kByTerms>, kKind>(p, stream);
}

template <LinearKind kKind>
cudaError_t launch_kind(const LinearParams& p, cudaStream_t stream) {
  return p.storage == Storage::kBFloat16 ? launch_stored<bfloat16, kKind>(p, stream)
                                         : launch_stored<float, kKind>(p, stream);
}

}  // namespace

bool hopper_linear_fits(const LinearParams& p) {
  constexpr int64_t kMost = std::numeric_limits<int>::max() - 128;  // beside a tile
  return linear_fits(p) && p.rows <= kMost && p.n <= kMost && p.k <= kMost &&
         tiles_of(hopper_linear_tile(p.rows, p.n), p.rows, p.n) <= kMost;
}

cudaError_t launch_hopper_linear(const LinearParams& p, LinearKind kind, cudaStream_t stream) {
  if (!hopper_linear_fits(p)) return cudaErrorInvalidValue;
  if (p.rows == 0 || p.n == 0) return cudaSuccess;
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
