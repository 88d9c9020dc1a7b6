// What src/ops/cuda calls to embed games. The rules of kernels/selective_scan/launch.h hold here
// too.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/game_embedding/params.h"

namespace dmamba::kernels {

cudaError_t launch_game_embedding(const GameEmbeddingParams& p, cudaStream_t stream);
cudaError_t launch_game_embedding_backward(const GameEmbeddingGradients& p, cudaStream_t stream);

}  // namespace dmamba::kernels
