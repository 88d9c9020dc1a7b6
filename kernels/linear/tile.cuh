// A block's tiles of the output, and their factors' way to shared memory, in pieces of some bytes
// of every row, by cp.async.
//
// A row of a piece is eight packs of 16 bytes, kept in an order by which eight rows lie in
// different banks; a float32 weight by terms has rows 8 numbers longer than they look, so that 4
// rows x 8 columns of a fragment do.
#pragma once

#include "kernels/common/copy.cuh"
#include "kernels/common/storage.cuh"
#include "kernels/linear/params.h"

namespace dmamba::kernels::linear {

constexpr int kThreads = 256, kPackBytes = 16;

/// A tile of rows x columns, of T.
template <class T, int kRowsOf, int kColumnsOf, bool kByTermsOf>
struct Tile {
  using Number = T;
  static constexpr bool kByTerms = kByTermsOf, kSingle = sizeof(T) == 4;
  static constexpr int kRows = kRowsOf, kColumns = kColumnsOf;
  static constexpr int kRowTiles = kRows / 32, kColumnTiles = kColumns / 32;  // of a warp: 16, 8

  static constexpr int kSummands = 1;  // of a tile's sums
  static constexpr int kPieceBytes = 128, kStages = kRows == 128 ? 3 : 4;

  static constexpr int kPack = kPackBytes / static_cast<int>(sizeof(T));
  static constexpr int kPacks = kPieceBytes / kPackBytes, kSteps = kPacks / 2;
  static constexpr int kTerms = kPacks * kPack;
  static constexpr int kWeightPitch = !kByTerms ? kTerms : kSingle ? kColumns + 8 : kColumns;
  static constexpr int kWeightRows = kByTerms ? kTerms : kColumns;

  struct Stage {
    T x[kRows * kTerms];
    T weight[kWeightRows * kWeightPitch];
  };
  union Memory {
    Stage stages[kStages];
    float sums[kRows * kColumns];  // in their place
  };

  static_assert(kPacks == 8 && sizeof(Memory) <= 99 << 10);  // what compute capability 8.6 has

  /// Where a pack of a row of terms lies.
  static __device__ __forceinline__ int x_at(int row, int pack) {
    return row * kTerms + (pack ^ (row & 7)) * kPack;
  }
  static __device__ __forceinline__ int weight_at(int row, int pack) {
    if constexpr (!kByTerms) return x_at(row, pack);
    return row * kWeightPitch + (kSingle ? pack : pack ^ (row & 7)) * kPack;
  }
};

/// A thread's share of a matrix's way to shared memory: a pack of every kTurn-th of kMost rows of
/// kRowPacks packs.
template <class T, int kMost, int kRowPacks, int kPitch>
struct Share {
  static constexpr int kTurn = kThreads / kRowPacks, kEach = kMost / kTurn;
  static_assert(kThreads % kRowPacks == 0 && kEach * kTurn == kMost);
  static __device__ __forceinline__ int row() { return static_cast<int>(threadIdx.x) / kRowPacks; }
  static __device__ __forceinline__ int pack() { return static_cast<int>(threadIdx.x) % kRowPacks; }

  /// To `to`, where the thread's first pack has its place, from its first in `from`, whose rows are
  /// `stride` apart; those beyond the thread's `rows`, perhaps below 0, become zero.
  static __device__ __forceinline__ void send(T* to, const T* from, int64_t stride, int rows) {
    const T* next = from;
#pragma unroll
    for (int n = 0; n < kEach; ++n) {
      const bool exists = n * kTurn < rows;
      copy_async(to + n * kTurn * kPitch, exists ? next : from, exists ? kPackBytes : 0);
      next += kTurn * stride;
    }
  }
};

/// The pieces of a tile: where they come from, and their way to shared memory.
template <class Tile>
class Pieces {
  using T = typename Tile::Number;
  static constexpr int kPack = Tile::kPack;
  using X = Share<T, Tile::kRows, Tile::kPacks, Tile::kTerms>;
  using Weight = Share<T, Tile::kWeightRows, Tile::kByTerms ? Tile::kColumns / kPack : Tile::kPacks,
                       Tile::kWeightPitch>;

 public:
  __device__ __forceinline__ Pieces(const LinearParams& p, int64_t first_row, int first_column)
      : k_(p.k), x_stride_(p.x_stride), weight_stride_(Tile::kByTerms ? p.n : p.k) {
    const auto* x = static_cast<const T*>(p.x);
    const auto* weight = static_cast<const T*>(p.weight);
    x_rows_ = static_cast<int>(min(int64_t{Tile::kRows}, p.rows - first_row)) - X::row();
    x_ = x + (first_row + X::row() + min(0, x_rows_ - 1)) * x_stride_ + X::pack() * kPack;
    const int columns = p.n - first_column;
    if constexpr (Tile::kByTerms) {
      weight_rows_ = Weight::pack() * kPack < columns ? Tile::kTerms : 0;
      weight_ = weight + first_column + (weight_rows_ > 0 ? Weight::pack() * kPack : 0);
    } else {
      weight_rows_ = columns - Weight::row();
      weight_ = weight + int64_t{first_column + min(Weight::row(), columns - 1)} * p.k +
                Weight::pack() * kPack;
    }
  }

  /// The piece from `term` on; terms that don't exist are zero.
  __device__ __forceinline__ void send(typename Tile::Stage& stage, int term) const {
    const bool exists = term + X::pack() * kPack < k_;
    const int back = exists ? 0 : X::pack() * kPack;  // to what may be read
    X::send(stage.x + Tile::x_at(X::row(), X::pack()), x_ + term - back, x_stride_,
            exists ? x_rows_ : 0);
    T* const to = stage.weight + Tile::weight_at(Weight::row(), Weight::pack());
    if constexpr (Tile::kByTerms) {
      const int terms = k_ - term - Weight::row();
      Weight::send(to, weight_ + int64_t{min(term + Weight::row(), k_ - 1)} * weight_stride_,
                   weight_stride_, weight_rows_ > 0 ? terms : 0);
    } else {
      Weight::send(to, weight_ + term - back, weight_stride_, exists ? weight_rows_ : 0);
    }
  }

 private:
  int k_, x_rows_, weight_rows_;
  int64_t x_stride_, weight_stride_;
  const T *x_, *weight_;
};

}  // namespace dmamba::kernels::linear
