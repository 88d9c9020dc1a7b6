// The beginning and the end of a training step on CUDA: tensors to kernels/.
#include <ATen/ATen.h>

#include "kernels/optimizer/launch.h"
#include "kernels/sampling/launch.h"
#include "src/ops/cuda/tensors.h"
#include "src/ops/cuda_only.h"

namespace dmamba::ops::cuda_only {
namespace {

using cuda::Call;

kernels::StepScalars* scalars_of(const StepState& state) {
  return reinterpret_cast<kernels::StepScalars*>(state.scalars.mutable_data_ptr<float>());
}

/// Null where there is one set, whose counts are not defined.
int64_t* count_of_set(const Tensor& count) {
  return count.defined() ? count.mutable_data_ptr<int64_t>() : nullptr;
}

kernels::SkippedSteps* skipped_of(const StepState& state) {
  return reinterpret_cast<kernels::SkippedSteps*>(state.skipped.mutable_data_ptr<int64_t>());
}

float* mutable_floats(const Tensor& t) { return t.mutable_data_ptr<float>(); }

}  // namespace

void begin_step(const BeginStep& options, const StepState& state,
                const TrajectoryTensors* trajectories, const BatchTensors& batch) {
  Call call("begin_step", state.step);
  kernels::BeginStepParams p{};
  p.step = state.step.const_data_ptr<int64_t>();
  p.set_step = count_of_set(state.set_step);
  p.skipped = skipped_of(state);
  p.set_skipped = count_of_set(state.set_skipped);
  p.seed = options.seed;
  p.first_sample = options.first_sample;
  p.learning_rate = options.learning_rate;
  p.beta1 = options.beta1;
  p.beta2 = options.beta2;
  p.scalars = scalars_of(state);
  p.dropout_keys = state.dropout_keys.mutable_data_ptr<int64_t>();
  p.n_keys = state.dropout_keys.numel();
  if (trajectories != nullptr) {
    const TrajectoryTensors& t = *trajectories;
    p.data = {t.states.const_data_ptr<float>(),
              t.actions.const_data_ptr<float>(),
              t.returns_to_go.const_data_ptr<float>(),
              t.starts.const_data_ptr<int64_t>(),
              t.padding_state.const_data_ptr<float>(),
              t.padding_action,
              t.starts.numel() - 1,
              t.states.size(1),
              t.actions.size(1)};
    p.batch = {mutable_floats(batch.states),
               mutable_floats(batch.actions),
               mutable_floats(batch.returns_to_go),
               batch.timesteps.mutable_data_ptr<int64_t>(),
               batch.mask.mutable_data_ptr<bool>(),
               batch.mask.size(0),
               batch.mask.size(1),
               options.max_timestep};
  }
  call.check(kernels::launch_begin_step(p, call.stream()));
}

Tensor decay_rates(const Tensor& A_log) {
  const Tensor A = at::empty(A_log.sizes(), A_log.options());
  write_mirrors({{A_log.contiguous(), A}});
  return A;
}

void write_mirrors(const std::vector<Mirrored>& list) {
  if (list.empty()) return;
  Call call("write_mirrors", list[0].parameter);
  std::vector<kernels::MirrorTensor> tensors;
  tensors.reserve(list.size());
  for (const auto& [parameter, mirror] : list) {
    tensors.push_back({parameter.const_data_ptr<float>(), mirror.mutable_data_ptr(),
                       mirror.scalar_type() == at::kBFloat16 ? kernels::Mirror::kBFloat16
                                                             : kernels::Mirror::kDecayRates,
                       parameter.numel()});
  }
  call.check(
      kernels::launch_mirrors(tensors.data(), static_cast<int>(tensors.size()), call.stream()));
}

Tensor adamw(const AdamWTensors& tensors, const AdamWOptions& options, const Tensor& loss,
             const StepState& state) {
  Call call("adamw", loss);
  std::vector<kernels::AdamWTensor> list;
  list.reserve(tensors.parameters.size());
  for (size_t i = 0; i < tensors.parameters.size(); ++i) {
    const Tensor& mirror = tensors.mirrors[i];
    list.push_back(
        {mutable_floats(tensors.parameters[i]), tensors.gradients[i].const_data_ptr<float>(),
         mutable_floats(tensors.first_moments[i]), mutable_floats(tensors.second_moments[i]),
         mirror.defined() ? mirror.mutable_data_ptr() : nullptr,
         !mirror.defined()                       ? kernels::Mirror::kNone
         : mirror.scalar_type() == at::kBFloat16 ? kernels::Mirror::kBFloat16
                                                 : kernels::Mirror::kDecayRates,
         tensors.of_set[i], tensors.parameters[i].numel(),
         static_cast<float>(tensors.weight_decays[i]), static_cast<float>(tensors.rates[i])});
  }
  const auto count = static_cast<int>(list.size());
  const Tensor norm = at::empty({}, loss.options().dtype(at::kFloat));
  void* scratch = call.scratch(kernels::adamw_workspace(list.data(), count));
  call.check(kernels::launch_adamw(
      list.data(), count,
      {static_cast<float>(options.beta1), static_cast<float>(options.beta2),
       static_cast<float>(options.epsilon), static_cast<float>(options.gradient_clip),
       options.most_skipped},
      scalars_of(state), loss.const_data_ptr<float>(),
      {mutable_floats(norm), state.norm_sum.mutable_data_ptr<double>(),
       state.loss_sum.mutable_data_ptr<double>(), state.step.mutable_data_ptr<int64_t>(),
       count_of_set(state.set_step), skipped_of(state), count_of_set(state.set_skipped)},
      scratch, call.stream()));
  return norm;
}

}  // namespace dmamba::ops::cuda_only
