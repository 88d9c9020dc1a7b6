// What src/ops/cuda calls for the token embedding. The rules of kernels/normalization/launch.h hold
// here too.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/embedding/params.h"

namespace dmamba::kernels {

cudaError_t launch_embedding(const EmbeddingParams& p, cudaStream_t stream);

/// The backward pass is these two, one after the other.
cudaError_t launch_embedding_norm_backward(const EmbeddingNormParams& p, cudaStream_t stream);
cudaError_t launch_embedding_gradients(const EmbeddingGradientParams& p, cudaStream_t stream);

}  // namespace dmamba::kernels
