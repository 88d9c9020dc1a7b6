// Parameters of the residual stream's steps. Free of torch and of CUDA.
#pragma once

#include "kernels/common/types.h"

namespace dmamba::kernels {

/// A dropout whose key lies on the device; the mask is kernels/elementwise/params.h's.
struct DropoutMask {
  const int64_t* key;  // null: no dropout
  uint32_t threshold;  // round(p 2^32)
  float scale;         // 1 / (1 - p)
  int64_t first;       // number of the first element in the mask, a multiple of 64
};

/// Widths that the kernels take: multiples of 64 up to this.
constexpr int64_t kNormMaxWidth = 1024;
constexpr bool norm_width_fits(int64_t width) {
  return width > 0 && width % 64 == 0 && width <= kNormMaxWidth;
}

/// sum = residual + dropout(branch + bias);  normed = LayerNorm(sum) (Ba et al., arXiv 1607.06450).
///
/// All (rows, width) contiguous; residual and sum float32, branch and normed of `storage` (float32
/// or bfloat16); parameters float32.
struct AddNormParams {
  int64_t rows, width;
  Storage storage;
  const float* residual;
  const void* branch;  // null: sum = residual, and `sum` is not written
  const float* bias;   // (width,) or null
  DropoutMask dropout;
  const float* weight;
  const float* norm_bias;
  float epsilon;
  float* sum;
  void* normed;
  float* statistics;  // (rows, 2): mean, 1 / deviation
};

/// The gradients: dsum = dsum + LayerNorm'(dnormed), dbranch = dropout(dsum), and the parameters'
/// column sums in `parts`, (norm_backward_blocks(rows, width), columns, width): of dnormed times
/// the normalised row (weight), dnormed (norm_bias), and, where there is a bias, dbranch.
struct AddNormBackwardParams {
  int64_t rows, width;
  Storage storage;
  const void* dnormed;
  const float* dsum_in;  // null: zero
  const float* sum;
  const float* statistics;
  const float* weight;
  DropoutMask dropout;
  bool has_bias;
  float* dresidual;  // float32
  void* dbranch;     // null: not wanted
  float* parts;
};

constexpr int kNormWarps = 8;

/// Rows that a warp of the backward kernel has in flight.
constexpr int64_t norm_rows_at_once(int64_t width) { return width <= 256 ? 2 : 1; }

/// Blocks of the backward kernel: from sizes alone, so that sums have one order on any device. At
/// most what an H200 holds at once (3, 2 or 1 a multiprocessor), or the last ones would come late.
constexpr int64_t norm_backward_blocks(int64_t rows, int64_t width) {
  const int64_t each = kNormWarps * norm_rows_at_once(width);
  const int64_t blocks = (rows + each - 1) / each;
  const int64_t most = width <= 128 ? 396 : width <= 256 ? 264 : 132;
  return blocks < most ? blocks : most;
}

}  // namespace dmamba::kernels
