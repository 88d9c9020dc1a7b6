// What src/ops/cuda calls for the gradients of weights. The rules of
// kernels/selective_scan/launch.h hold here too.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/common/types.h"
#include "kernels/weight_gradients/params.h"

namespace dmamba::kernels {

/// Whether launch_weight_gradients works on the current device: it has clusters of blocks, and runs
/// code that was compiled for such devices.
bool weight_gradients_run();

/// Whether rows can be read 16 bytes at a time.
bool weight_gradient_fits(const WeightGradient& gradient, Storage storage);

/// All of them in one launch for every 48; each of them fits. Products of bfloat16, or of float32
/// rounded to TF32; sums in float32, in one order on any device.
cudaError_t launch_weight_gradients(const WeightGradient* gradients, int count, Storage storage,
                                    cudaStream_t stream);

/// The same for bfloat16, and for float32, on the compute capability kHopperArchitecture alone,
/// whose sums have another order.
cudaError_t launch_hopper_weight_gradients(const WeightGradient* gradients, int count,
                                           cudaStream_t stream);
cudaError_t launch_hopper_tf32_weight_gradients(const WeightGradient* gradients, int count,
                                                cudaStream_t stream);

}  // namespace dmamba::kernels
