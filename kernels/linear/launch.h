// What src/ops/cuda calls for the products beside a GELU. The rules of
// kernels/selective_scan/launch.h hold here too.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/linear/params.h"

namespace dmamba::kernels {

/// Compute capability, times ten, from which on they work.
constexpr int kLinearArchitecture = 80;

/// Whether everything that is there can be read and written 16 bytes at a time.
bool linear_fits(const LinearParams& p);

cudaError_t launch_linear_gelu(const LinearParams& p, cudaStream_t stream);
cudaError_t launch_linear_slope(const LinearParams& p, cudaStream_t stream);

}  // namespace dmamba::kernels
