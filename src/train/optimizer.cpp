// AdamW: which parameters decay, the clip, and the fused step.
#include "dmamba/train/optimizer.h"

#include <torch/torch.h>

#include <algorithm>
#include <unordered_set>

namespace dmamba::train {
namespace {

using torch::Tensor;

/// Parameters that weight decay only harms: A_log and D by name, vectors (norms, biases) by shape,
/// embeddings by module.
std::unordered_set<std::string> undecayed_names(const torch::nn::Module& model) {
  std::unordered_set<std::string> names;
  for (const auto& item : model.named_modules()) {
    if (item.value()->as<torch::nn::Embedding>() != nullptr) names.insert(item.key() + ".weight");
  }
  for (const auto& item : model.named_parameters()) {
    const std::string& name = item.key();
    if (item.value().dim() < 2 || name.ends_with("A_log")) names.insert(name);
  }
  return names;
}

}  // namespace

AdamW::AdamW(const torch::nn::Module& model, const config::TrainingConfig& training)
    : training_(training) {
  std::unordered_set<std::string> undecayed;
  if (training.decay != "all") undecayed = undecayed_names(model);
  for (const auto& item : model.named_parameters()) {
    slots_.push_back({item.key(), item.value(), torch::zeros_like(item.value()),
                      torch::zeros_like(item.value())});
  }
  const auto middle = std::stable_partition(slots_.begin(), slots_.end(), [&](const Slot& slot) {
    return undecayed.count(slot.name) == 0;
  });
  n_decayed_ = static_cast<size_t>(middle - slots_.begin());
}

void AdamW::set_steps(int64_t steps) { steps_ = steps; }

std::vector<Tensor> AdamW::gradients() const {
  std::vector<Tensor> gradients;
  for (const Slot& slot : slots_) {
    const Tensor& gradient = slot.parameter.grad();
    gradients.push_back(gradient.defined() ? gradient : torch::zeros_like(slot.parameter));
  }
  return gradients;
}

Tensor AdamW::step(double learning_rate) {
  torch::NoGradGuard no_grad;
  std::vector<Tensor> gradient = gradients();
  const Tensor norm = torch::stack(at::_foreach_norm(gradient, 2)).norm();
  if (training_.gradient_clip > 0) {
    // The factor stays on the device; 1e-6 as in torch's clip_grad_norm_.
    at::_foreach_mul_(gradient, (training_.gradient_clip / (norm + 1e-6)).clamp_max(1.0));
  }
  ++steps_;
  const Tensor step_count = torch::full({}, static_cast<double>(steps_), norm.options());
  const auto apply = [&](size_t begin, size_t end, double decay) {
    if (begin == end) return;
    std::vector<Tensor> parameters, gradients, first, second;
    for (size_t i = begin; i < end; ++i) {
      parameters.push_back(slots_[i].parameter);
      gradients.push_back(gradient[i]);
      first.push_back(slots_[i].first_moment);
      second.push_back(slots_[i].second_moment);
    }
    const std::vector<Tensor> steps(end - begin, step_count);
    at::_fused_adamw_(parameters, gradients, first, second, {}, steps, learning_rate,
                      training_.beta1, training_.beta2, decay, training_.epsilon,
                      /*amsgrad=*/false, /*maximize=*/false);
  };
  apply(0, n_decayed_, training_.weight_decay);
  apply(n_decayed_, slots_.size(), 0.0);
  for (Slot& slot : slots_) slot.parameter.mutable_grad().reset();
  return norm;
}

}  // namespace dmamba::train
