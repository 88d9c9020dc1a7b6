// The embedding of games' tokens as one differentiable function on CUDA.
#pragma once

#include <torch/types.h>

#include "src/ops/cuda_only.h"

namespace dmamba::nn {

/// Differentiable once in states and parameters; on CUDA alone, for sizes that
/// ops::cuda_only::game_sizes_fit.
ops::cuda_only::GameEmbedding embed_game(const ops::cuda_only::GameInputs& in);

}  // namespace dmamba::nn
