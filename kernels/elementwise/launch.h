// What src/ops/cuda calls: the channel mixer's elementwise ops on a CUDA device. The rules of
// kernels/selective_scan/launch.h hold here too.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "kernels/elementwise/params.h"

namespace dmamba::kernels {

cudaError_t launch_gelu_forward(const GeluParams& p, cudaStream_t stream);
cudaError_t launch_gelu_backward(const GeluParams& p, cudaStream_t stream);

cudaError_t launch_bias_gelu(const BiasGeluParams& p, cudaStream_t stream);

/// Bytes of scratch (16-byte aligned) that launch_multiply_sum needs.
size_t multiply_sum_workspace(const MultiplySumParams& p);

/// sums: (channels,), written whole, zeros without rows. The sum_partial field of `p` is the CPU's
/// and is not read.
cudaError_t launch_multiply_sum(const MultiplySumParams& p, float* sums, void* workspace,
                                cudaStream_t stream);

/// The same mask as on the CPU, bit for bit. A device key, where given, takes the place of p.key,
/// so that a captured graph can be replayed with another.
cudaError_t launch_dropout(const DropoutParams& p, const uint64_t* device_key, cudaStream_t stream);

}  // namespace dmamba::kernels
