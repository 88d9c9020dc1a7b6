// A row of the residual stream in a warp: four neighbouring columns a lane, in turns.
#pragma once

#include <cuda_runtime.h>

#include <type_traits>

#include "kernels/common/dropout.cuh"
#include "kernels/common/storage.cuh"
#include "kernels/common/warp.cuh"
#include "kernels/normalization/params.h"

namespace dmamba::kernels {

constexpr int kRowVector = 4, kRowTurn = 32 * kRowVector;

/// Turns that a row of `width` takes, rounded up to what is compiled.
template <class F>
cudaError_t with_row_turns(int64_t width, F&& f) {
  if (width <= kRowTurn) return f(std::integral_constant<int, 1>{});
  if (width <= 2 * kRowTurn) return f(std::integral_constant<int, 2>{});
  if (width <= 4 * kRowTurn) return f(std::integral_constant<int, 4>{});
  return f(std::integral_constant<int, 8>{});
}

/// The row's values that this lane holds; columns beyond the width are zero.
template <int kTurns>
struct Row {
  float v[kTurns][kRowVector];
};

struct Lane {
  int lane, width;
  __device__ __forceinline__ int column(int turn) const {
    return turn * kRowTurn + lane * kRowVector;
  }
  __device__ __forceinline__ bool has(int turn) const { return column(turn) < width; }
};

template <int kTurns, class T>
__device__ __forceinline__ Row<kTurns> load_row(const T* p, const Lane& lane) {
  Row<kTurns> row;
#pragma unroll
  for (int i = 0; i < kTurns; ++i) {
    fetch<kRowVector, true>(p + lane.column(i), lane.has(i) ? kRowVector : 0, true).get(row.v[i]);
  }
  return row;
}

template <int kTurns, class T>
__device__ __forceinline__ void store_row(T* p, const Row<kTurns>& row, const Lane& lane) {
#pragma unroll
  for (int i = 0; i < kTurns; ++i) {
    if (lane.has(i)) store_pack<T, kRowVector>(p + lane.column(i), row.v[i]);
  }
}

/// Which of the row's elements a dropout keeps: a turn's bits, lowest first.
template <int kTurns>
struct Kept {
  uint32_t v[kTurns];
};

template <int kTurns>
__device__ __forceinline__ Kept<kTurns> kept_of(const DropoutMask& mask, uint64_t key,
                                                int64_t row_index, const Lane& lane) {
  const int64_t first = mask.first + row_index * lane.width;  // a multiple of a stretch, 64
  Kept<kTurns> kept;
#pragma unroll
  for (int i = 0; i < kTurns; ++i) {
    const auto stretch = static_cast<uint64_t>(first + i * kRowTurn) / 64;
    kept.v[i] = keep_bits<kRowVector>(stretch, key, mask.threshold, lane.lane);
  }
  return kept;
}

/// Zero or scale, for each of the row's elements.
template <int kTurns>
__device__ __forceinline__ void drop(Row<kTurns>& row, const Kept<kTurns>& kept, float scale) {
#pragma unroll
  for (int i = 0; i < kTurns; ++i) {
#pragma unroll
    for (int e = 0; e < kRowVector; ++e) {
      row.v[i][e] = (kept.v[i] >> e & 1U) != 0 ? row.v[i][e] * scale : 0.0F;
    }
  }
}

template <int kTurns>
__device__ __forceinline__ void apply_dropout(Row<kTurns>& row, const DropoutMask& mask,
                                              uint64_t key, int64_t row_index, const Lane& lane) {
  drop(row, kept_of<kTurns>(mask, key, row_index, lane), mask.scale);
}

/// to += other
template <int kTurns>
__device__ __forceinline__ void add_row(Row<kTurns>& to, const Row<kTurns>& other) {
#pragma unroll
  for (int i = 0; i < kTurns; ++i) {
#pragma unroll
    for (int e = 0; e < kRowVector; ++e) to.v[i][e] += other.v[i][e];
  }
}

struct RowStatistics {
  float mean, rstd;
};

__device__ __forceinline__ RowStatistics load_statistics(const float* statistics, int64_t row) {
  float s[2];
  load_pack<float, 2>(statistics + 2 * row, s);
  return {s[0], s[1]};
}

__device__ __forceinline__ void store_statistics(float* statistics, int64_t row,
                                                 const RowStatistics& s) {
  store_pack<float, 2>(statistics + 2 * row, {s.mean, s.rstd});
}

/// In two passes, as the rows are in registers: no cancellation.
template <int kCount, int kTurns>
__device__ __forceinline__ void statistics_of(const Row<kTurns> (&rows)[kCount], float epsilon,
                                              const Lane& lane, RowStatistics (&out)[kCount]) {
  const auto width = static_cast<float>(lane.width);
  float means[kCount] = {}, squares[kCount] = {};
#pragma unroll
  for (int r = 0; r < kCount; ++r) {
#pragma unroll
    for (int i = 0; i < kTurns; ++i) {
#pragma unroll
      for (int e = 0; e < kRowVector; ++e) means[r] += rows[r].v[i][e];
    }
  }
  sum_warp(means);
#pragma unroll
  for (int r = 0; r < kCount; ++r) {
    means[r] /= width;
#pragma unroll
    for (int i = 0; i < kTurns; ++i) {
#pragma unroll
      for (int e = 0; e < kRowVector; ++e) {
        const float centred = lane.has(i) ? rows[r].v[i][e] - means[r] : 0.0F;
        squares[r] = fmaf(centred, centred, squares[r]);
      }
    }
  }
  sum_warp(squares);
#pragma unroll
  for (int r = 0; r < kCount; ++r) out[r] = {means[r], rsqrtf(squares[r] / width + epsilon)};
}

template <int kTurns>
__device__ __forceinline__ RowStatistics statistics_of(const Row<kTurns>& row, float epsilon,
                                                       const Lane& lane) {
  const Row<kTurns> rows[1] = {row};
  RowStatistics statistics[1];
  statistics_of(rows, epsilon, lane, statistics);
  return statistics[0];
}

/// (row - mean) rstd w + b
template <int kTurns>
__device__ __forceinline__ Row<kTurns> normalise(const Row<kTurns>& row, const RowStatistics& s,
                                                 const Row<kTurns>& w, const Row<kTurns>& b) {
  Row<kTurns> out;
#pragma unroll
  for (int i = 0; i < kTurns; ++i) {
#pragma unroll
    for (int e = 0; e < kRowVector; ++e) {
      out.v[i][e] = fmaf((row.v[i][e] - s.mean) * s.rstd, w.v[i][e], b.v[i][e]);
    }
  }
  return out;
}

/// The gradients of rows before their LayerNorm, given those of its output; adds to the column sums
/// of dy times the normalised row, and of dy. The rows' sums don't wait for one another.
template <int kCount, int kTurns>
__device__ __forceinline__ void norm_gradients(const Row<kTurns> (&dy)[kCount],
                                               const Row<kTurns> (&x)[kCount],
                                               const RowStatistics (&s)[kCount],
                                               const Row<kTurns>& weight, Row<kTurns> (&dx)[kCount],
                                               Row<kTurns>& dweight, Row<kTurns>& dbias,
                                               const Lane& lane) {
  const auto normalised = [&](int r, int i, int e) {
    return lane.has(i) ? (x[r].v[i][e] - s[r].mean) * s[r].rstd : 0.0F;
  };
  float sums[2 * kCount] = {};  // of the scaled gradients, of their products with the row
#pragma unroll
  for (int r = 0; r < kCount; ++r) {
#pragma unroll
    for (int i = 0; i < kTurns; ++i) {
#pragma unroll
      for (int e = 0; e < kRowVector; ++e) {
        const float scaled = dy[r].v[i][e] * weight.v[i][e];
        sums[2 * r] += scaled;
        sums[2 * r + 1] = fmaf(scaled, normalised(r, i, e), sums[2 * r + 1]);
        dweight.v[i][e] = fmaf(dy[r].v[i][e], normalised(r, i, e), dweight.v[i][e]);
        dbias.v[i][e] += dy[r].v[i][e];
      }
    }
  }
  sum_warp(sums);
  const float one = 1.0F / static_cast<float>(lane.width);
#pragma unroll
  for (int r = 0; r < kCount; ++r) {
    const float sum = sums[2 * r] * one, product = sums[2 * r + 1] * one;
#pragma unroll
    for (int i = 0; i < kTurns; ++i) {
#pragma unroll
      for (int e = 0; e < kRowVector; ++e) {
        const float scaled = dy[r].v[i][e] * weight.v[i][e];
        dx[r].v[i][e] = s[r].rstd * (scaled - sum - normalised(r, i, e) * product);
      }
    }
  }
}

/// Adds the warps' column sums in order into `parts`, (columns, width), this block's; kAtOnce of
/// them at a time through `shared`, of kWarps kAtOnce rows of turns, which may be in use until
/// here.
template <int kWarps, int kAtOnce = 1, int kColumns, int kTurns>
__device__ void leave_column_sums(float* shared, const Row<kTurns> (&sums)[kColumns], int columns,
                                  float* parts, const Lane& lane) {
  static_assert(kColumns % kAtOnce == 0);
  constexpr int kPitch = kTurns * kRowTurn;
  const int warp = static_cast<int>(threadIdx.x) / 32;
#pragma unroll
  for (int first = 0; first < kColumns; first += kAtOnce) {
    if (first >= columns) return;
    __syncthreads();
#pragma unroll
    for (int c = 0; c < kAtOnce; ++c) {
      store_row<kTurns>(shared + (warp * kAtOnce + c) * kPitch, sums[first + c], lane);
    }
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < kAtOnce * kPitch; i += kWarps * 32) {
      const int c = first + i / kPitch, column = i % kPitch;
      if (c >= columns || column >= lane.width) continue;
      float sum = shared[i];
#pragma unroll
      for (int w = 1; w < kWarps; ++w) sum += shared[w * kAtOnce * kPitch + i];
      parts[c * lane.width + column] = sum;
    }
  }
}

}  // namespace dmamba::kernels
