// The recurrent policy's step on CUDA: tensors to kernels/.
#include <ATen/ATen.h>

#include "kernels/policy_step/launch.h"
#include "src/ops/cuda/tensors.h"
#include "src/ops/cuda_only.h"

namespace dmamba::ops::cuda_only {

kernels::PolicyStepPlan policy_step_plan(const kernels::PolicyStepSizes& sizes, int64_t num_envs,
                                         at::Device device) {
  const c10::cuda::CUDAGuard guard(device);
  const auto check = [](cudaError_t error) { cuda::check_cuda("policy_step", error); };
  kernels::PolicyStepPlan plan{};
  if (!kernels::policy_step_runs()) return plan;
  check(kernels::plan_policy_step(sizes, static_cast<int>(num_envs), &plan));
  return plan;
}

void policy_step(const PolicyStep& step, const Tensor& seen, const Tensor& actions) {
  cuda::Call call("policy_step", seen);
  kernels::PolicyStepParams p{};
  p.sizes = step.sizes;
  p.layout = kernels::policy_step_layout(step.sizes, step.plan.ranks);
  p.vectors = kernels::policy_step_vectors(step.sizes, step.plan.ranks);
  p.num_envs = static_cast<int>(seen.size(0));
  p.envs = step.plan.envs;
  p.packed = step.packed.const_data_ptr<float>();
  p.time = step.time.const_data_ptr<float>();
  p.seen = seen.const_data_ptr<float>();
  p.actions = actions.mutable_data_ptr<float>();
  p.states = step.states.mutable_data_ptr<float>();
  call.check(kernels::launch_policy_step(p, call.stream()));
}

}  // namespace dmamba::ops::cuda_only
