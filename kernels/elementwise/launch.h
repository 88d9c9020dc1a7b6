// What src/ops/cuda calls: the channel mixer's elementwise ops on a CUDA device. The rules of
// kernels/selective_scan/launch.h hold here too.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "kernels/elementwise/params.h"

namespace dmamba::kernels {

cudaError_t launch_gelu_forward(const GeluParams& p, cudaStream_t stream);
cudaError_t launch_gelu_backward(const GeluParams& p, cudaStream_t stream);

cudaError_t launch_bias_gelu(const BiasGeluParams& p, cudaStream_t stream);

/// Blocks' sums that launch_multiply_sum leaves: parts (multiply_sum_parts(p), channels) float32.
int64_t multiply_sum_parts(const MultiplySumParams& p);

/// The sum over the rows is left in parts, for launch_sum_parts. The sum_partial field of `p` is
/// the CPU's and is not read.
cudaError_t launch_multiply_sum(const MultiplySumParams& p, float* parts, cudaStream_t stream);

/// sums[c] = the sum of parts[.][c], parts (count, columns) contiguous; zeros without parts. A
/// thread adds every 16th part and then the threads in turn: one order on any device.
cudaError_t launch_sum_parts(const float* parts, float* sums, int64_t count, int64_t columns,
                             cudaStream_t stream);

/// The same mask as on the CPU, bit for bit. A device key, where given, takes the place of p.key,
/// so that a captured graph can be replayed with another.
cudaError_t launch_dropout(const DropoutParams& p, const uint64_t* device_key, cudaStream_t stream);

}  // namespace dmamba::kernels
