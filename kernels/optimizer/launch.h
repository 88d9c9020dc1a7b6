// What src/ops/cuda calls for the optimizer's step. The rules of kernels/selective_scan/launch.h
// hold here too.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "kernels/optimizer/params.h"

namespace dmamba::kernels {

/// Bytes of scratch (16-byte aligned) that launch_adamw needs.
size_t adamw_workspace(const AdamWTensor* tensors, int count);

/// Clips by the global norm and applies one step of AdamW (Loshchilov and Hutter, arXiv 1711.05101)
/// to `count` tensors (at least one). `scalars` lie on the device, the step's and then those of its
/// set; the other arrays on the host. Where `loss`, a scalar on the device, or the norm is not
/// finite, or the run has been stopped, parameters, moments and mirrors keep their bits.
cudaError_t launch_adamw(const AdamWTensor* tensors, int count, const AdamWOptions& options,
                         const StepScalars* scalars, const float* loss, const AdamWTraces& traces,
                         void* workspace, cudaStream_t stream);

/// Writes the mirrors of `count` tensors alone.
cudaError_t launch_mirrors(const MirrorTensor* tensors, int count, cudaStream_t stream);

}  // namespace dmamba::kernels
