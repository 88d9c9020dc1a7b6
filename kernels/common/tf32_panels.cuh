// Panels of float32 (wgmma.cuh, tensor_map.cuh) on their way to products of TF32, which cut factors
// off instead of rounding them, and take the second one by rows of 32 terms alone.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/common/mma.cuh"

namespace dmamba::kernels {

constexpr int kTf32Terms = 32;  // of a panel's row

/// Where a number of a panel lies, whose rows have 32.
__device__ __forceinline__ int tf32_at(int row, int column) {
  return row * kTf32Terms + ((column / 4) ^ (row & 7)) * 4 + column % 4;
}

__device__ __forceinline__ void store_rounded(float* to, float a, float b, float c, float d) {
  *reinterpret_cast<uint4*>(to) = make_uint4(to_tf32(a), to_tf32(b), to_tf32(c), to_tf32(d));
}

/// A panel of so many rows, rounded; by kThreads.
template <int kRows, int kThreads>
__device__ __forceinline__ void round_panel(float* rounded, const float* panel) {
#pragma unroll
  for (int i = 0; i < kRows * kTf32Terms / 4; i += kThreads) {
    const int at = (i + static_cast<int>(threadIdx.x)) * 4;
    const float4 four = *reinterpret_cast<const float4*>(panel + at);
    store_rounded(rounded + at, four.x, four.y, four.z, four.w);
  }
}

/// Panels of 32 terms, whose rows those are, one after the other, to one whose rows are their
/// kColumns; rounded. By kThreads.
template <int kColumns, int kThreads>
__device__ __forceinline__ void turn_panels(float* rounded, const float* panels) {
#pragma unroll
  for (int i = 0; i < kColumns * kTf32Terms / 4; i += kThreads) {
    const int at = i + static_cast<int>(threadIdx.x);
    const int column = at % kColumns, term = at / kColumns * 4;
    const float* panel = panels + column / 32 * 32 * kTf32Terms;
    const auto number = [&](int k) { return panel[tf32_at(term + k, column % 32)]; };
    store_rounded(rounded + tf32_at(column, term), number(0), number(1), number(2), number(3));
  }
}

}  // namespace dmamba::kernels
