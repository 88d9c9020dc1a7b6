// What becomes of a tile's sums on their way from shared to global memory: a thread has 16
// neighbouring bytes of every so many rows, so that accesses are whole, and a bias is loaded and a
// sum over rows left once.
#pragma once

#include "kernels/common/gelu.cuh"
#include "kernels/common/tile_sums.cuh"
#include "kernels/linear/product.cuh"

namespace dmamba::kernels::linear {

/// Of a tile with so many kSummands of its sums, a tile after the other.
template <class Tile, LinearKind kKind>
struct Ending {
  static constexpr bool kGelu = kKind == LinearKind::kGelu, kSlope = kKind == LinearKind::kSlope;
  using T = typename Tile::Number;
  static constexpr int kPack = Tile::kPack, kSlices = kThreads * kPack / Tile::kColumns;
  static constexpr int kTurns = Tile::kRows / kSlices;
  const LinearParams& p;
  int64_t first_row;
  int first_column;
  int slice = static_cast<int>(threadIdx.x) / (Tile::kColumns / kPack);
  int in_tile = static_cast<int>(threadIdx.x) % (Tile::kColumns / kPack) * kPack;

  __device__ __forceinline__ int column() const { return first_column + in_tile; }
  /// Of the thread's rows, kSlices apart: those that exist, or a number below 1.
  int rows = static_cast<int>(min(int64_t{Tile::kRows}, p.rows - first_row)) - slice;

  __device__ __forceinline__ bool has(int turn) const { return turn * kSlices < rows; }
  /// The thread's first pack in a matrix.
  __device__ __forceinline__ T* first(void* matrix) const {
    return static_cast<T*>(matrix) + (first_row + slice) * p.n + column();
  }

  /// What the ending reads, asked for before the sums are waited for.
  struct Read {
    Pack<T, kPack> v[kTurns];
  };
  __device__ __forceinline__ void read(Read& r) const {
    if (!kSlope || column() >= p.n) return;
    const T* from = first(p.slope);
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      if (has(turn)) r.v[turn] = *reinterpret_cast<const Pack<T, kPack>*>(from);
      from += int64_t{kSlices} * p.n;
    }
  }

  __device__ __forceinline__ void load_bias(float (&bias)[kPack]) const {
    if constexpr (kGelu) {
      if (column() >= p.n) return;
#pragma unroll
      for (int e = 0; e < kPack; e += 4) {
        const float4 four = *reinterpret_cast<const float4*>(p.bias + column() + e);
        bias[e] = four.x, bias[e + 1] = four.y, bias[e + 2] = four.z, bias[e + 3] = four.w;
      }
    }
  }

  /// A row's sums, 16 bytes at a time; of eight numbers half of the lanes takes the second four
  /// first, or two would meet in every bank; not beside a GELU, which waits for instructions, not
  /// for banks.
  __device__ __forceinline__ void load_sums(const float* staged, int turn,
                                            float (&value)[kPack]) const {
    const int swapped = kPack == 8 && !kGelu ? in_tile / 8 & 4 : 0;
    float got[kPack];
#pragma unroll
    for (int e = 0; e < kPack; e += 4) {
      float4 four = make_float4(0.0F, 0.0F, 0.0F, 0.0F);
#pragma unroll
      for (int i = 0; i < Tile::kSummands; ++i) {
        const int row = i * Tile::kRows + turn * kSlices + slice;
        const float4 next = *reinterpret_cast<const float4*>(
            staged + sum_at<Tile::kColumns>(row, in_tile + (e ^ swapped)));
        four = i == 0 ? next
                      : make_float4(four.x + next.x, four.y + next.y, four.z + next.z,
                                    four.w + next.w);
      }
      got[e] = four.x, got[e + 1] = four.y, got[e + 2] = four.z, got[e + 3] = four.w;
    }
#pragma unroll
    for (int e = 0; e < kPack; ++e) {
      value[e] = kPack == 8 && !kGelu && swapped != 0 ? got[e ^ 4] : got[e];
    }
  }

  /// The sums to memory; adds what is summed over rows to `total`.
  __device__ __forceinline__ void store(const float* staged, const Read& r,
                                        const float (&bias)[kPack], float (&total)[kPack]) const {
    if (column() >= p.n) return;
    T *out = first(p.out), *slope = kGelu ? first(p.slope) : nullptr;
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      if (!has(turn)) break;
      float value[kPack], other[kPack];
      load_sums(staged, turn, value);
      if constexpr (kSlope) r.v[turn].get(other);
#pragma unroll
      for (int e = 0; e < kPack; ++e) {
        if constexpr (kGelu) {
          const float x = value[e] + bias[e];
          const float2 gelu = Tile::kSingle ? gelu_with_slope(x) : gelu_with_slope_for_bfloat16(x);
          value[e] = gelu.x;
          other[e] = gelu.y;
        } else if constexpr (kSlope) {
          value[e] *= other[e];
          total[e] += value[e];
        }
      }
      store_whole<T, kPack>(out, value);
      out += int64_t{kSlices} * p.n;
      if constexpr (kGelu) {
        store_whole<T, kPack>(slope, other);
        slope += int64_t{kSlices} * p.n;
      }
    }
  }

  /// Adds the slices' sums in order, through shared memory that nobody reads any more.
  __device__ __forceinline__ void leave_total(float* shared, const float (&total)[kPack]) const {
#pragma unroll
    for (int e = 0; e < kPack; ++e) shared[slice * Tile::kColumns + in_tile + e] = total[e];
    __syncthreads();
    const int c = static_cast<int>(threadIdx.x);
    if (c >= Tile::kColumns || first_column + c >= p.n) return;
    float sum = shared[c];
#pragma unroll
    for (int s = 1; s < kSlices; ++s) sum += shared[s * Tile::kColumns + c];
    p.parts[first_row / Tile::kRows * p.n + first_column + c] = sum;
  }
};

/// A tile's sums, which all warps have left, to what becomes of them.
template <class Tile, LinearKind kKind>
__device__ __forceinline__ void end_tile(float* staged, const Ending<Tile, kKind>& ending) {
  float bias[Tile::kPack], total[Tile::kPack] = {};
  ending.load_bias(bias);
  typename Ending<Tile, kKind>::Read read;
  ending.read(read);
  __syncthreads();
  ending.store(staged, read, bias, total);
  if constexpr (kKind == LinearKind::kSlope) {
    __syncthreads();
    ending.leave_total(staged, total);
  }
}

}  // namespace dmamba::kernels::linear
