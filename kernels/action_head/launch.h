// What src/ops/cuda calls for the action head. The rules of kernels/normalization/launch.h hold
// here too.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/action_head/params.h"

namespace dmamba::kernels {

cudaError_t launch_action_head(const ActionHeadParams& p, cudaStream_t stream);
cudaError_t launch_action_head_backward(const ActionHeadBackwardParams& p, cudaStream_t stream);

}  // namespace dmamba::kernels
