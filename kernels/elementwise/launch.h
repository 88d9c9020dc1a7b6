// What src/ops/cuda calls: the channel mixer's elementwise ops on a CUDA device. The rules of
// kernels/selective_scan/launch.h hold here too.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/elementwise/params.h"

namespace dmamba::kernels {

cudaError_t launch_gelu_forward(const GeluParams& p, cudaStream_t stream);
cudaError_t launch_gelu_backward(const GeluParams& p, cudaStream_t stream);

/// The same mask as on the CPU, bit for bit. A device key, where given, takes the place of p.key,
/// so that a captured graph can be replayed with another.
cudaError_t launch_dropout(const DropoutParams& p, const uint64_t* device_key, cudaStream_t stream);

}  // namespace dmamba::kernels
