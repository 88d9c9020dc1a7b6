// What src/ops/cuda calls for the token embedding. The rules of kernels/normalization/launch.h hold
// here too.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/embedding/params.h"

namespace dmamba::kernels {

cudaError_t launch_embedding(const EmbeddingParams& p, cudaStream_t stream);
cudaError_t launch_embedding_weights(const EmbeddingWeightsParams& p, cudaStream_t stream);
cudaError_t launch_time_gradient(const TimeGradientParams& p, cudaStream_t stream);

}  // namespace dmamba::kernels
