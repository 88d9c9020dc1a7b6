// The recurrent policy's step on CUDA in one launch: kernels/policy_step.
#pragma once

#include <memory>

#include "dmamba/model/dmamba.h"
#include "src/model/parameter_watch.h"
#include "src/ops/cuda_only.h"

namespace dmamba::model {

/// Computes what DMambaImpl::step does, to rounding, with the same bits beside any other
/// environments. Keeps a packed copy of the weights, renewed in the first call after a
/// ParameterWatch has seen a change. Nothing goes through torch's operators: neither autocast nor
/// torch's precision of float32 products says anything here.
class RecurrentCuda {
 public:
  /// Null where this model on its device, or its sizes, are not what the kernel is compiled for.
  static std::unique_ptr<RecurrentCuda> make(const DMamba& model, int64_t num_envs);

  /// seen (num_envs, state_dim + 3), a row of PolicyOnDevice; actions (num_envs, act_dim), both
  /// float32 on the device: what was done in the step before becomes what is to be done. On the
  /// current stream.
  void act(const torch::Tensor& seen, const torch::Tensor& actions);

 private:
  RecurrentCuda(DMamba model, const kernels::PolicyStepSizes& sizes,
                const kernels::PolicyStepPlan& plan, int64_t num_envs);
  void repack_if_changed();

  DMamba model_;
  ParameterWatch watch_;
  ops::cuda_only::PolicyStep step_;
};

}  // namespace dmamba::model
