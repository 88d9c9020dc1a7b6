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
/// column sums in `parts`, (norm_backward_blocks(rows), columns, width): of dnormed times the
/// normalised row (weight), dnormed (norm_bias), and, where there is a bias, dbranch.
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

/// The gradient of dropout(LayerNorm(x)), the embedding's; everything float32.
struct NormDropoutBackwardParams {
  int64_t rows, width;
  const float* dout;
  const float* x;
  const float* statistics;
  const float* weight;
  DropoutMask dropout;
  float* dx;
  float* parts;  // (norm_backward_blocks(rows), 2, width): weight, norm_bias
};

constexpr int kNormWarps = 8;

/// Blocks of the backward kernels: from sizes alone, so that sums have one order on any device.
constexpr int64_t norm_backward_blocks(int64_t rows) {
  const int64_t blocks = (rows + kNormWarps - 1) / kNormWarps;
  return blocks < 528 ? blocks : 528;
}

}  // namespace dmamba::kernels
