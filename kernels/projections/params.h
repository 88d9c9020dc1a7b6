// Parameters of the products between the convolution and the scan. Free of torch and of CUDA.
#pragma once

#include <cstdint>

#include "kernels/common/types.h"

namespace dmamba::kernels {

/// u = SiLU(convolution of x), four taps, along sequences of `length` tokens that begin with zeros
/// (kernels/causal_conv1d/params.h), where the projections compute it themselves.
struct ProjectionsConvolution {
  const void* x;       // (rows, inner), rows x_stride apart, on 16 bytes
  int64_t x_stride;    // elements
  const void* weight;  // (inner, 4) float32 contiguous, on 16 bytes
  const void* bias;    // (inner,) float32, optional
  Flags mask, segment_starts;
  int length;
};

/// projected = u x_proj^T, whose first `rank` columns are dt, and delta = dt dt_proj^T.
///
/// Everything of `storage`, contiguous, on 16 bytes: u and delta (rows, inner), projected (rows,
/// width) with width = rank + 2 d_state, x_proj (width, inner), dt_proj (inner, rank). float32:
/// the products' factors are rounded to TF32.
struct ProjectionsParams {
  int64_t rows;
  int inner, rank, width;
  Storage storage;
  const void* x_proj;
  const void* dt_proj;
  void* u;  // written where there is a convolution
  void* projected;
  void* delta;
  ProjectionsConvolution convolution;  // x null: there is none
};

/// d dt = ddelta dt_proj, into dprojected's first `rank` columns; du += dprojected x_proj. The
/// other columns, of dB and dC, are there, or are the sums of `parts` over `n_parts` in their
/// order: (n_parts, rows, width - rank) float32 on 16 bytes.
struct ProjectionsBackwardParams {
  int64_t rows;
  int inner, rank, width;
  Storage storage;
  const void* x_proj;
  const void* dt_proj;
  const void* ddelta;
  void* dprojected;
  void* du;
  const float* parts;  // null: dprojected has dB and dC
  int n_parts;
};

}  // namespace dmamba::kernels
