// AdamW: which parameters decay, the clip, and the fused step.
#include "dmamba/train/optimizer.h"

#include <torch/torch.h>

#include <algorithm>
#include <unordered_set>

#include "src/ops/cuda_only.h"

namespace dmamba::train {
namespace {

using torch::Tensor;

/// Parameters that weight decay only harms: A by name, vectors (D, norms, biases) by shape,
/// embeddings by module or, of places, by name.
std::unordered_set<std::string> undecayed_names(const torch::nn::Module& model) {
  std::unordered_set<std::string> names;
  for (const auto& item : model.named_modules()) {
    if (item.value()->as<torch::nn::Embedding>() != nullptr) names.insert(item.key() + ".weight");
  }
  for (const auto& item : model.named_parameters()) {
    const std::string& name = item.key();
    const bool is_A =
        name.ends_with("A_log") || name.ends_with("log_A_real") || name.ends_with("A_imag");
    if (item.value().dim() < 2 || is_A || name.ends_with("pos_emb")) {
      names.insert(name);
    }
  }
  return names;
}

/// Tensors of one call of the fused kernel.
struct Group {
  std::vector<Tensor> parameters, gradients, first, second;

  void add(const Slot& slot, const Tensor& gradient) {
    parameters.push_back(slot.parameter);
    gradients.push_back(gradient);
    first.push_back(slot.first_moment);
    second.push_back(slot.second_moment);
  }
};

/// The gradient as the fused kernels take it: CUDA's wants the parameter's very strides.
Tensor gradient_of(const Tensor& parameter) {
  const Tensor& found = parameter.grad();
  if (!found.defined()) return torch::zeros_like(parameter);
  if (found.strides() == parameter.strides()) return found;
  return torch::empty_like(parameter).copy_(found);
}

void check_any(bool any) {
  TORCH_CHECK(any, "AdamW: no parameter requires a gradient; nothing to train");
}

}  // namespace

AdamW::AdamW(const torch::nn::Module& model, const config::TrainingConfig& training)
    : training_(training) {
  const std::unordered_set<std::string> undecayed = undecayed_names(model);
  for (const auto& item : model.named_parameters()) {
    slots_.push_back({item.key(), item.value(), torch::zeros_like(item.value()),
                      torch::zeros_like(item.value()), undecayed.count(item.key()) == 0});
  }
  const auto middle = std::stable_partition(slots_.begin(), slots_.end(), [&](const Slot& slot) {
    return training.decay == "all" || slot.is_matrix;
  });
  n_decayed_ = static_cast<size_t>(middle - slots_.begin());
  TORCH_CHECK(!slots_.empty(), "AdamW: the model has no parameters");
  step_count_ = torch::zeros({}, slots_[0].parameter.options().requires_grad(false));
}

void AdamW::set_steps(int64_t steps) { step_count_.fill_(static_cast<double>(steps)); }

Tensor AdamW::step(double learning_rate) {
  torch::NoGradGuard no_grad;
  Group decayed, undecayed;
  std::vector<Tensor> gradients;
  for (size_t i = 0; i < slots_.size(); ++i) {
    const Slot& slot = slots_[i];
    if (!slot.parameter.requires_grad()) continue;
    gradients.push_back(gradient_of(slot.parameter));
    (i < n_decayed_ ? decayed : undecayed).add(slot, gradients.back());
  }
  check_any(!gradients.empty());
  const Tensor norm = torch::stack(at::_foreach_norm(gradients, 2)).norm();
  if (training_.gradient_clip > 0) {
    // The factor stays on the device; 1e-6 as in torch's clip_grad_norm_.
    at::_foreach_mul_(gradients, (training_.gradient_clip / (norm + 1e-6)).clamp_max(1.0));
  }
  step_count_ += 1;
  const auto apply = [&](Group& group, double decay) {
    if (group.parameters.empty()) return;
    const std::vector<Tensor> steps(group.parameters.size(), step_count_);
    at::_fused_adamw_(group.parameters, group.gradients, group.first, group.second, {}, steps,
                      learning_rate, training_.beta1, training_.beta2, decay, training_.epsilon,
                      /*amsgrad=*/false, /*maximize=*/false);
  };
  apply(decayed, training_.weight_decay);
  apply(undecayed, 0.0);
  for (Slot& slot : slots_) slot.parameter.mutable_grad().reset();
  return norm;
}

Tensor AdamW::step_on_device(const Tensor& loss, const ops::cuda_only::StepState& state) {
  torch::NoGradGuard no_grad;
  ops::cuda_only::AdamWTensors tensors;
  for (size_t i = 0; i < slots_.size(); ++i) {
    const Slot& slot = slots_[i];
    if (!slot.parameter.requires_grad()) continue;
    tensors.parameters.push_back(slot.parameter);
    tensors.gradients.push_back(gradient_of(slot.parameter));
    tensors.first_moments.push_back(slot.first_moment);
    tensors.second_moments.push_back(slot.second_moment);
    const auto mirror = mirrors_.find(slot.parameter.unsafeGetTensorImpl());
    tensors.mirrors.push_back(mirror == mirrors_.end() ? Tensor() : mirror->second);
    tensors.weight_decays.push_back(i < n_decayed_ ? training_.weight_decay : 0.0);
  }
  check_any(!tensors.parameters.empty());
  const Tensor norm = ops::cuda_only::adamw(
      tensors, {training_.beta1, training_.beta2, training_.epsilon, training_.gradient_clip}, loss,
      state);
  for (Slot& slot : slots_) slot.parameter.mutable_grad().reset();
  return norm;
}

const AdamW::Mirrors& AdamW::make_mirrors(bool bf16) {
  for (const Slot& slot : slots_) {
    const bool decays = slot.name.ends_with("A_log");
    if (!decays && !(bf16 && slot.is_matrix)) continue;
    mirrors_[slot.parameter.unsafeGetTensorImpl()] =
        torch::empty_like(slot.parameter, decays ? at::kFloat : at::kBFloat16);
  }
  refresh_mirrors();
  return mirrors_;
}

void AdamW::refresh_mirrors() {
  torch::NoGradGuard no_grad;
  for (const Slot& slot : slots_) {
    const auto found = mirrors_.find(slot.parameter.unsafeGetTensorImpl());
    if (found == mirrors_.end()) continue;
    Tensor& mirror = found->second;
    mirror.copy_(mirror.scalar_type() == at::kFloat ? ops::cuda_only::decay_rates(slot.parameter)
                                                    : slot.parameter);
  }
}

}  // namespace dmamba::train
