// What both kernels of the projections begin with: a block's shared memory, the way to it and back,
// and the fragments of its products.
//
// A block has 32 tokens and all of both matrices in shared memory, 73 (bfloat16 of rank 8: three
// blocks a multiprocessor) to 140 KiB. Eight warps: two along the rows, four groups. Sums of a
// group's terms meet in shared memory in one order. A product takes a step of 32 bytes of terms, 16
// of bfloat16 or 8 of float32, which is rounded to TF32; whose fragments look the same in words.
#pragma once

#include "kernels/causal_conv1d/pair.cuh"
#include "kernels/common/copy.cuh"
#include "kernels/common/launch.cuh"
#include "kernels/common/mma.cuh"
#include "kernels/common/storage.cuh"
#include "kernels/projections/launch.h"

namespace dmamba::kernels::projections {

constexpr int kRows = 32, kWarps = 8, kThreads = 32 * kWarps, kGroups = 4;
constexpr int kMostWidth = 48;

/// Numbers of 16 bytes, and terms of a product's step.
template <class T>
constexpr int kPack = 16 / sizeof(T);
template <class T>
constexpr int kStep = 2 * kPack<T>;
/// Blocks a multiprocessor that a kernel's registers leave room for.
template <class T>
constexpr int kBlocks = sizeof(T) == 2 ? 3 : 1;

/// Rows of shared memory are a pack longer than they look, so that eight of them lie in different
/// banks; those of float32 that are taken by columns eight numbers.
template <class T, int kInner>
constexpr int kRowPitch = kInner + kPack<T>;
template <int kInner>
constexpr int kTermPitch = kInner + 8;
template <class T>
constexpr int kPadded = kMostWidth + kPack<T>;  // of projected, a row of it

template <class Number, int kInnerOf, int kRankOf>
struct Memory {
  using T = Number;
  static constexpr int kInner = kInnerOf, kRank = kRankOf, kPitch = kRowPitch<T, kInner>;
  alignas(16) T rows[kRows * kPitch];  // u, or ddelta; then delta
  union {
    alignas(16) T more[(kRows + kPairHalo) * kPitch];  // du; or x, from three tokens before
    float parts[kGroups * kRows * kMostWidth];         // forward, in its place
  };
  alignas(16) T x_proj[kMostWidth * kTermPitch<kInner>];
  alignas(16) T dt_proj[kInner * kRank];
  alignas(16) T projected[kRows * kPadded<T>];
  uint2 tokens[kRows + kPairHalo];  // x's: bits where the mask holds, and where a token precedes
};

/// The first `count` of up to kMost rows of kPacks packs, to rows of kPitch numbers. Unrolled with
/// offsets that are known: two instructions a copy.
template <int kPacks, int kPitch, int kMost, class T>
__device__ __forceinline__ void send(T* to, const void* from, int count) {
  static_assert(kThreads % kPacks == 0);
  constexpr int kTurn = kThreads / kPacks;  // rows at a time
  const int first = static_cast<int>(threadIdx.x) / kPacks;
  const int pack = static_cast<int>(threadIdx.x) % kPacks * kPack<T>;
  T* const shared = to + first * kPitch + pack;
  const T* const global = static_cast<const T*>(from) + first * kPacks * kPack<T> + pack;
#pragma unroll
  for (int row = 0; row < kMost; row += kTurn) {
    if (first + row < count) {
      copy_async(shared + row * kPitch, global + row * kPacks * kPack<T>, 16);
    }
  }
}

/// sums += a b, of fragments that Place loads.
template <class T>
__device__ __forceinline__ void multiply(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0,
                                         uint32_t b1) {
  if constexpr (sizeof(T) == 2) {
    multiply_add(sums, a, b0, b1);
  } else {
    multiply_add_tf32(sums, a, b0, b1);
  }
}

/// Words of a fragment as products take them.
template <class T>
__device__ __forceinline__ void round_words(uint32_t (&words)[4]) {
  if constexpr (sizeof(T) == 4) {
#pragma unroll
    for (uint32_t& word : words) word = to_tf32(__uint_as_float(word));
  }
}

struct Place {
  int lane = static_cast<int>(threadIdx.x) % 32;
  int row_warp = static_cast<int>(threadIdx.x) / 32 % 2;
  int group = static_cast<int>(threadIdx.x) / 64;
  int64_t first_row = int64_t{blockIdx.x} * kRows;

  /// Of a fragment A (16 rows of a step) in rows of `pitch`.
  template <int kPitch, class T>
  __device__ __forceinline__ void load_a(uint32_t (&a)[4], const T* rows, int term) const {
    load_tiles(a, rows + (row_warp * 16 + lane % 16) * kPitch + term + lane / 16 * kPack<T>);
    round_words<T>(a);
  }
  /// Two fragments B (a step of 8 columns): a row is a column's terms.
  template <int kPitch, class T>
  __device__ __forceinline__ void load_b(uint32_t (&b)[4], const T* columns, int column,
                                         int term) const {
    load_tiles(
        b, columns + (column + lane % 8 + lane / 16 * 8) * kPitch + term + lane / 8 % 2 * kPack<T>);
    round_words<T>(b);
  }
  /// The same: a row is a term's columns.
  template <int kPitch>
  __device__ __forceinline__ void load_b_by_term(uint32_t (&b)[4], const bfloat16* terms,
                                                 int column, int term) const {
    load_tiles_transposed(b, terms + (term + lane % 16) * kPitch + column + lane / 16 * 8);
  }
  template <int kPitch>
  __device__ __forceinline__ void load_b_by_term(uint32_t (&b)[4], const float* terms, int column,
                                                 int term) const {
    const float* from = terms + (term + lane % 4) * kPitch + column + lane / 4;
#pragma unroll
    for (int i = 0; i < 4; ++i) b[i] = to_tf32(from[i % 2 * 4 * kPitch + i / 2 * 8]);
  }
  /// The lane's row of fragments (and the eighth after), and its column in each eight.
  __device__ __forceinline__ int row() const { return row_warp * 16 + lane / 4; }
  __device__ __forceinline__ int column() const { return lane % 4 * 2; }
};

/// Leaves a group's sums of 8 columns.
__device__ __forceinline__ void leave_part(float* part, int width, const float (&sums)[4],
                                           int column, const Place& at) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    *reinterpret_cast<float2*>(part + (at.row() + 8 * half) * width + column + at.column()) =
        make_float2(sums[2 * half], sums[2 * half + 1]);
  }
}

/// Adds the groups' parts of `columns` columns, and leaves them in `projected` and in global memory
/// (rows of `width`).
template <class Memory>
__device__ __forceinline__ void join_parts(Memory& memory, const float* parts, int columns,
                                           void* global, int width, int rows, const Place& at) {
  using T = typename Memory::T;
  for (int i = static_cast<int>(threadIdx.x); i < kRows * columns / 2; i += kThreads) {
    const int row = i / (columns / 2), column = i % (columns / 2) * 2;
    float sum[2] = {};
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      const float2 part =
          *reinterpret_cast<const float2*>(parts + (g * kRows + row) * columns + column);
      sum[0] += part.x, sum[1] += part.y;
    }
    store_pack<T, 2>(memory.projected + row * kPadded<T> + column, sum);
    if (row < rows) {
      store_pack<T, 2>(static_cast<T*>(global) + (at.first_row + row) * width + column, sum);
    }
  }
}

/// Rows of kInner numbers from shared to global memory.
template <int kInner, class T>
__device__ __forceinline__ void store_rows(void* global, const T* rows, int count,
                                           const Place& at) {
  constexpr int kPacks = kInner / kPack<T>, kTurn = kThreads / kPacks;
  const int first = static_cast<int>(threadIdx.x) / kPacks;
  const int pack = static_cast<int>(threadIdx.x) % kPacks * kPack<T>;
  const T* from = rows + first * kRowPitch<T, kInner> + pack;
  T* to = static_cast<T*>(global) + (at.first_row + first) * kInner + pack;
#pragma unroll
  for (int row = 0; row < kRows; row += kTurn) {
    if (first + row < count) {
      *reinterpret_cast<uint4*>(to + row * kInner) =
          *reinterpret_cast<const uint4*>(from + row * kRowPitch<T, kInner>);
    }
  }
}

/// Both matrices, x_proj to rows of kWeightPitch, and, if they are there, activations.
template <int kWeightPitch, class Memory, class Params>
__device__ __forceinline__ void send_all(Memory& memory, const Params& p, const void* activations,
                                         int rows, const Place& at) {
  using T = typename Memory::T;
  constexpr int kInner = Memory::kInner, kPacks = kInner / kPack<T>;
  if (activations != nullptr) {
    send<kPacks, Memory::kPitch, kRows>(
        memory.rows, static_cast<const T*>(activations) + at.first_row * kInner, rows);
  }
  send<kPacks, kWeightPitch, kMostWidth>(memory.x_proj, p.x_proj, p.width);
  send<Memory::kRank / kPack<T>, Memory::kRank, kInner>(memory.dt_proj, p.dt_proj, kInner);
}

/// Begins to fetch both matrices into L2.
template <class T, class Params>
__device__ __forceinline__ void fetch_matrices_early(const Params& p) {
  constexpr int64_t kBytes = sizeof(T);
  fetch_early(p.x_proj, kBytes * p.width * p.inner);
  fetch_early(p.dt_proj, kBytes * p.rank * p.inner);
}

/// Launches the kernel of these types and widths that `kernel_of` names.
template <class Params, class F>
cudaError_t launch_blocks(const Params& p, cudaStream_t stream, const F& kernel_of) {
  const auto launch = [&]<class T, int kInner, int kRank>() {
    const auto blocks = static_cast<unsigned>((p.rows + kRows - 1) / kRows);
    return launch_early(kernel_of.template operator()<T, kInner, kRank>(), blocks, kThreads,
                        sizeof(Memory<T, kInner, kRank>), stream, p);
  };
  const auto launch_ranks = [&]<class T, int kInner>() {
    return p.rank == 8 ? launch.template operator()<T, kInner, 8>()
                       : launch.template operator()<T, kInner, 16>();
  };
  if (!projections_fit(p.rows, p.inner, p.rank, p.width, p.storage)) return cudaErrorInvalidValue;
  if (p.rows == 0) return cudaSuccess;
  if (p.storage == Storage::kFloat32) return launch_ranks.template operator()<float, 256>();
  return p.inner == 256 ? launch_ranks.template operator()<bfloat16, 256>()
                        : launch_ranks.template operator()<bfloat16, 512>();
}

}  // namespace dmamba::kernels::projections
