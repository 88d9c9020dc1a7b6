// What src/ops/cuda calls for products of activations and a weight. The rules of
// kernels/selective_scan/launch.h hold here too.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/linear/params.h"

namespace dmamba::kernels {

/// Compute capability, times ten, from which on they work.
constexpr int kLinearArchitecture = 80;

/// Whether everything that is there can be read and written 16 bytes at a time.
bool linear_fits(const LinearParams& p);

/// kGelu, in tiles of linear_tile(), and kSlope.
cudaError_t launch_linear_gelu(const LinearParams& p, cudaStream_t stream);
cudaError_t launch_linear_slope(const LinearParams& p, cudaStream_t stream);

/// Whether launch_hopper_linear takes it: as linear_fits(), and no coordinate is beyond an int.
bool hopper_linear_fits(const LinearParams& p);

/// All kinds, on the compute capability kHopperArchitecture alone, in tiles of
/// hopper_linear_tile().
cudaError_t launch_hopper_linear(const LinearParams& p, LinearKind kind, cudaStream_t stream);

}  // namespace dmamba::kernels
