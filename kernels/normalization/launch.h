// What src/ops/cuda calls for the residual stream. The rules of kernels/selective_scan/launch.h
// hold here too; widths as norm_width_fits, addresses multiples of 16 bytes.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/normalization/params.h"

namespace dmamba::kernels {

cudaError_t launch_add_norm(const AddNormParams& p, cudaStream_t stream);
cudaError_t launch_add_norm_backward(const AddNormBackwardParams& p, cudaStream_t stream);

}  // namespace dmamba::kernels
