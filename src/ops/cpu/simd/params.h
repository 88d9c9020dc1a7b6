// Parameters of the kernels that the CPU alone has: those of the recurrent policy's step, which
// works on few tokens and so is a matter of reading the weights fast. Free of torch.
#pragma once

#include "kernels/common/types.h"

namespace dmamba::ops::cpu {

/// Vectors of rows that a panel of a packed matrix covers; the last panel has what is left.
constexpr int64_t kPanelVectors = 4;

/// out = W x + bias, or out += W x + bias, for tokens that lie a stride apart.
///
/// W (rows, columns) is packed into panels of kPanelVectors vectors of rows: a panel has, for each
/// column, its rows side by side, zeros where the matrix ends inside a vector. In bfloat16 columns
/// lie in pairs: two numbers of a row, then those of the next row; an odd last column has a zero at
/// its side. So the whole matrix is read once, from its beginning to its end.
struct ProductParams {
  int64_t rows, columns;
  kernels::Storage weights;  // fp32 or bf16 (fp64 with fp64 tokens)
  const void* weight;
  const void* bias;  // (rows,), optional
  bool add;

  const void* x;  // fp32 (fp64)
  int64_t x_stride;
  void* out;  // fp32 (fp64), apart from x
  int64_t out_stride;
};

/// out = (x - mean) / sqrt(variance + epsilon) * weight + bias for each token, (tokens, channels)
/// contiguous; out may be x. fp32 (fp64 in the double table).
struct LayerNormParams {
  int64_t channels;
  double epsilon;
  const void* weight;
  const void* bias;
  const void* x;
  void* out;
};

}  // namespace dmamba::ops::cpu
