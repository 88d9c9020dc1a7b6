// Dropout whose key lies on the device.
#pragma once

#include <torch/types.h>

#include "src/ops/cuda_only.h"

namespace dmamba::nn {

/// ops::dropout for x on CUDA with a key that the host does not know, an int64 scalar there.
torch::Tensor keyed_dropout(const torch::Tensor& x, const ops::cuda_only::Dropout& dropout);

}  // namespace dmamba::nn
