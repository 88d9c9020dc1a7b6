// What src/ops/cuda calls between an image encoder's convolutions. The rules of
// kernels/selective_scan/launch.h hold here too.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/frames/params.h"

namespace dmamba::kernels {

cudaError_t launch_fold_frames(const FoldFramesParams& p, cudaStream_t stream);
cudaError_t launch_bias_relu(const BiasReluParams& p, cudaStream_t stream);

/// Blocks that the backward pass of these sizes runs in, whatever the device.
int64_t relu_blocks(const ReluSizes& sizes);
cudaError_t launch_bias_relu_backward(const BiasReluGradients& p, cudaStream_t stream);

cudaError_t launch_first_convolution(const FirstConvolutionParams& p, cudaStream_t stream);

int64_t first_convolution_blocks(int64_t batch, int64_t steps);
cudaError_t launch_first_convolution_backward(const FirstConvolutionGradients& p,
                                              cudaStream_t stream);

}  // namespace dmamba::kernels
