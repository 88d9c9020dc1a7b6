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

/// Zero or scale, for each of the row's elements.
template <int kTurns>
__device__ __forceinline__ void apply_dropout(Row<kTurns>& row, const DropoutMask& mask,
                                              uint64_t key, int64_t row_index, const Lane& lane) {
  const int64_t first = mask.first + row_index * lane.width;  // a multiple of a stretch, 64
#pragma unroll
  for (int i = 0; i < kTurns; ++i) {
    const auto stretch = static_cast<uint64_t>(first + i * kRowTurn) / 64;
    const uint32_t keep = keep_bits<kRowVector>(stretch, key, mask.threshold, lane.lane);
#pragma unroll
    for (int e = 0; e < kRowVector; ++e) {
      row.v[i][e] = (keep >> e & 1U) != 0 ? row.v[i][e] * mask.scale : 0.0F;
    }
  }
}

struct RowStatistics {
  float mean, rstd;
};

/// In two passes, as the row is in registers: no cancellation.
template <int kTurns>
__device__ __forceinline__ RowStatistics statistics_of(const Row<kTurns>& row, float epsilon,
                                                       const Lane& lane) {
  float sum = 0.0F;
#pragma unroll
  for (int i = 0; i < kTurns; ++i) {
#pragma unroll
    for (int e = 0; e < kRowVector; ++e) sum += row.v[i][e];
  }
  const auto width = static_cast<float>(lane.width);
  const float mean = sum_warp(sum) / width;
  float squares = 0.0F;
#pragma unroll
  for (int i = 0; i < kTurns; ++i) {
#pragma unroll
    for (int e = 0; e < kRowVector; ++e) {
      const float centred = lane.has(i) ? row.v[i][e] - mean : 0.0F;
      squares = fmaf(centred, centred, squares);
    }
  }
  return {mean, rsqrtf(sum_warp(squares) / width + epsilon)};
}

/// (row - mean) rstd weight + bias
template <int kTurns>
__device__ __forceinline__ Row<kTurns> normalise(const Row<kTurns>& row, const RowStatistics& s,
                                                 const float* weight, const float* bias,
                                                 const Lane& lane) {
  const Row<kTurns> w = load_row<kTurns>(weight, lane), b = load_row<kTurns>(bias, lane);
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

/// The gradient of a row before its LayerNorm, given that of its output; adds to the column sums of
/// dy times the normalised row, and of dy.
template <int kTurns>
__device__ __forceinline__ Row<kTurns> norm_gradient(const Row<kTurns>& dy, const Row<kTurns>& x,
                                                     const Row<kTurns>& weight,
                                                     const RowStatistics& s, Row<kTurns>& dweight,
                                                     Row<kTurns>& dbias, const Lane& lane) {
  Row<kTurns> normalised, scaled;
  float sum = 0.0F, product = 0.0F;
#pragma unroll
  for (int i = 0; i < kTurns; ++i) {
#pragma unroll
    for (int e = 0; e < kRowVector; ++e) {
      normalised.v[i][e] = lane.has(i) ? (x.v[i][e] - s.mean) * s.rstd : 0.0F;
      scaled.v[i][e] = dy.v[i][e] * weight.v[i][e];
      sum += scaled.v[i][e];
      product = fmaf(scaled.v[i][e], normalised.v[i][e], product);
      dweight.v[i][e] = fmaf(dy.v[i][e], normalised.v[i][e], dweight.v[i][e]);
      dbias.v[i][e] += dy.v[i][e];
    }
  }
  const auto width = static_cast<float>(lane.width);
  sum = sum_warp(sum) / width;
  product = sum_warp(product) / width;
  Row<kTurns> dx;
#pragma unroll
  for (int i = 0; i < kTurns; ++i) {
#pragma unroll
    for (int e = 0; e < kRowVector; ++e) {
      dx.v[i][e] = s.rstd * (scaled.v[i][e] - sum - normalised.v[i][e] * product);
    }
  }
  return dx;
}

/// Adds the warps' column sums in order into `parts`, (columns, width), this block's; through
/// `shared`, of kWarps rows of turns, which may be in use until here.
template <int kWarps, int kColumns, int kTurns>
__device__ void leave_column_sums(float* shared, const Row<kTurns> (&sums)[kColumns], int columns,
                                  float* parts, const Lane& lane) {
  constexpr int kPitch = kTurns * kRowTurn;
  const int warp = static_cast<int>(threadIdx.x) / 32;
#pragma unroll
  for (int c = 0; c < kColumns; ++c) {
    if (c >= columns) return;
    __syncthreads();
    store_row<kTurns>(shared + warp * kPitch, sums[c], lane);
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < lane.width; i += kWarps * 32) {
      float sum = shared[i];
#pragma unroll
      for (int w = 1; w < kWarps; ++w) sum += shared[w * kPitch + i];
      parts[c * lane.width + i] = sum;
    }
  }
}

}  // namespace dmamba::kernels
