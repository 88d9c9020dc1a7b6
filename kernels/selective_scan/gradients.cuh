// Sums what the blocks of the backward pass leave, in a fixed order.
#pragma once

#include "kernels/selective_scan/backward.cuh"
#include "kernels/selective_scan/launch.h"

namespace dmamba::kernels {

/// channel_blocks: dB and dC, too.
cudaError_t launch_sum_gradients(const SelectiveScanBackwardParams& p, const BackwardWork& work,
                                 const SelectiveScanGradients& gradients, bool channel_blocks,
                                 cudaStream_t stream);

}  // namespace dmamba::kernels
