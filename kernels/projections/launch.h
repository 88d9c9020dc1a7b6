// What src/ops/cuda calls for the products between the convolution and the scan. The rules of
// kernels/selective_scan/launch.h hold here too.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/projections/params.h"

namespace dmamba::kernels {

/// Compute capability, times ten, from which on they work.
constexpr int kProjectionsArchitecture = 80;

/// Rows beyond which single products are expected to be as fast.
constexpr int64_t kProjectionsMostRows = 8448;

/// Whether the kernels take so many rows of these widths.
constexpr bool projections_fit(int64_t rows, int64_t inner, int64_t rank, int64_t width) {
  return rows <= kProjectionsMostRows && (inner == 256 || inner == 512) &&
         (rank == 8 || rank == 16) && width > rank && width % 8 == 0 && width <= 48;
}

/// Bytes of shared memory that a block asks for.
int projections_shared_bytes(int64_t inner);

cudaError_t launch_projections(const ProjectionsParams& p, cudaStream_t stream);
cudaError_t launch_projections_backward(const ProjectionsBackwardParams& p, cudaStream_t stream);

}  // namespace dmamba::kernels
