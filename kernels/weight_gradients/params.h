// Parameters of the weights' gradients. Free of torch and of CUDA.
#pragma once

#include <cstdint>

namespace dmamba::kernels {

/// dweight (n, m) = dy^T x, contiguous, for dy (rows, n) and x (rows, m), whose rows are
/// contiguous.
struct WeightGradient {
  const void* dy;
  const void* x;
  float* dweight;
  int64_t rows;
  int64_t dy_stride, x_stride;  // elements from row to row
  int n, m;
};

}  // namespace dmamba::kernels
