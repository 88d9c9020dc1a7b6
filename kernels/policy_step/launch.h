// What src/ops/cuda calls for the recurrent policy's step. The rules of
// kernels/normalization/launch.h hold here too.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/policy_step/params.h"

namespace dmamba::kernels {

/// Bytes of shared memory that a block must be able to ask for.
constexpr int kPolicyStepSharedBytes = 227 * 1024;

/// Whether it works on the current device: it has clusters of blocks, bulk copies and so much
/// shared memory, and runs code that was compiled for such devices.
bool policy_step_runs();

/// Whether a plan's blocks fit into the device's memory, and the threads have enough to do.
bool policy_step_fits(const PolicyStepSizes& sizes, const PolicyStepPlan& plan);

/// The plan for the current device, in *plan; {0, 0} where nothing fits.
cudaError_t plan_policy_step(const PolicyStepSizes& sizes, int num_envs, PolicyStepPlan* plan);

/// Clusters of a plan that run at once on the current device, in *clusters.
cudaError_t policy_step_clusters(const PolicyStepSizes& sizes, const PolicyStepPlan& plan,
                                 int* clusters);

cudaError_t launch_policy_step(const PolicyStepParams& p, cudaStream_t stream);

}  // namespace dmamba::kernels
