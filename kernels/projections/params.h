// Parameters of the products between the convolution and the scan. Free of torch and of CUDA.
#pragma once

#include <cstdint>

namespace dmamba::kernels {

/// projected = u x_proj^T, whose first `rank` columns are dt, and delta = dt dt_proj^T.
///
/// Everything bfloat16, contiguous, on 16 bytes: u and delta (rows, inner), projected (rows, width)
/// with width = rank + 2 d_state, x_proj (width, inner), dt_proj (inner, rank).
struct ProjectionsParams {
  int64_t rows;
  int inner, rank, width;
  const void* x_proj;
  const void* dt_proj;
  const void* u;
  void* projected;
  void* delta;
};

/// d dt = ddelta dt_proj, into dprojected's first `rank` columns, the others of which are there;
/// du += dprojected x_proj.
struct ProjectionsBackwardParams {
  int64_t rows;
  int inner, rank, width;
  const void* x_proj;
  const void* dt_proj;
  const void* ddelta;
  void* dprojected;
  void* du;
};

}  // namespace dmamba::kernels
