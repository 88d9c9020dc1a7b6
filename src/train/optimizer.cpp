// AdamW: which parameters decay, the clip, and the fused step.
#include "dmamba/train/optimizer.h"

#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <tuple>
#include <unordered_set>

#include "dmamba/model/external.h"
#include "dmamba/train/transfer.h"
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
  if (const auto* external = model.as<model::ExternalModelImpl>()) {
    names.insert(external->embeddings().begin(), external->embeddings().end());
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

/// The set in "sets.SET.embed_state.weight"; empty: the parameter belongs to all.
std::string set_in(const std::string& name) {
  static const std::string prefix = "sets.";
  if (!name.starts_with(prefix)) return "";
  return name.substr(prefix.size(), name.find('.', prefix.size()) - prefix.size());
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

AdamW::AdamW(const torch::nn::Module& model, const config::TrainingConfig& training,
             const std::vector<std::string>& learning_rates)
    : training_(training) {
  const std::unordered_set<std::string> undecayed = undecayed_names(model);
  for (const auto& item : model.named_parameters()) {
    slots_.push_back({item.key(), item.value(), torch::zeros_like(item.value()),
                      torch::zeros_like(item.value()), undecayed.count(item.key()) == 0});
  }
  std::vector<std::string> names;
  names.reserve(slots_.size());
  for (const Slot& slot : slots_) names.push_back(slot.name);
  const std::vector<double> rates = rate_factors(names, learning_rates);
  std::vector<std::string> sets;  // in the order in which the model has them
  for (size_t i = 0; i < slots_.size(); ++i) {
    slots_[i].rate = rates[i];
    const std::string set = set_in(slots_[i].name);
    if (set.empty()) continue;
    const auto known = std::find(sets.begin(), sets.end(), set);
    slots_[i].set = known - sets.begin();
    if (known == sets.end()) sets.push_back(set);
  }
  const auto middle = std::stable_partition(slots_.begin(), slots_.end(), [&](const Slot& slot) {
    return training.decay == "all" || slot.is_matrix;
  });
  n_decayed_ = static_cast<size_t>(middle - slots_.begin());
  TORCH_CHECK(!slots_.empty(), "AdamW: the model has no parameters");
  step_count_ = torch::zeros({}, slots_[0].parameter.options().requires_grad(false));
  for (size_t i = 0; i < sets.size(); ++i) set_counts_.push_back(torch::zeros_like(step_count_));
}

double AdamW::weight_decay(size_t i) const { return i < n_decayed_ ? training_.weight_decay : 0.0; }

void AdamW::set_steps(int64_t steps) { step_count_.fill_(static_cast<double>(steps)); }

void AdamW::set_steps_of_set(size_t set, int64_t steps) {
  set_counts_.at(set).fill_(static_cast<double>(steps));
}

bool AdamW::is_trained(const Slot& slot, int64_t set) const {
  return slot.parameter.requires_grad() && (slot.set < 0 || slot.set == set);
}

Tensor AdamW::step(double learning_rate, int64_t set) {
  torch::NoGradGuard no_grad;
  std::map<std::tuple<double, double, bool>, Group> groups;  // by decay, rate, whether of a set
  std::vector<Tensor> gradients;
  for (size_t i = 0; i < slots_.size(); ++i) {
    const Slot& slot = slots_[i];
    if (!is_trained(slot, set)) continue;
    gradients.push_back(gradient_of(slot.parameter));
    groups[{weight_decay(i), slot.rate, slot.set >= 0}].add(slot, gradients.back());
  }
  check_any(!gradients.empty());
  const Tensor norm = torch::stack(at::_foreach_norm(gradients, 2)).norm();
  if (!std::isfinite(norm.item<double>())) {
    forget_gradients();
    return norm;
  }
  if (training_.gradient_clip > 0) {
    // The factor stays on the device; 1e-6 as in torch's clip_grad_norm_.
    at::_foreach_mul_(gradients, (training_.gradient_clip / (norm + 1e-6)).clamp_max(1.0));
  }
  step_count_ += 1;
  if (!set_counts_.empty()) set_counts_.at(static_cast<size_t>(set)) += 1;
  for (auto& [key, group] : groups) {
    const auto& [decay, rate, of_set] = key;
    const std::vector<Tensor> steps(group.parameters.size(),
                                    of_set ? set_counts_[static_cast<size_t>(set)] : step_count_);
    at::_fused_adamw_(group.parameters, group.gradients, group.first, group.second, {}, steps,
                      learning_rate * rate, training_.beta1, training_.beta2, decay,
                      training_.epsilon, /*amsgrad=*/false, /*maximize=*/false);
  }
  forget_gradients();
  return norm;
}

void AdamW::forget_gradients() {
  for (const Slot& slot : slots_) slot.parameter.mutable_grad().reset();
}

Tensor AdamW::step_on_device(const Tensor& loss, const ops::cuda_only::StepState& state,
                             int64_t set) {
  torch::NoGradGuard no_grad;
  ops::cuda_only::AdamWTensors tensors;
  for (size_t i = 0; i < slots_.size(); ++i) {
    const Slot& slot = slots_[i];
    if (!is_trained(slot, set)) continue;
    tensors.parameters.push_back(slot.parameter);
    tensors.gradients.push_back(gradient_of(slot.parameter));
    tensors.first_moments.push_back(slot.first_moment);
    tensors.second_moments.push_back(slot.second_moment);
    const auto mirror = mirrors_.find(slot.parameter.unsafeGetTensorImpl());
    tensors.mirrors.push_back(mirror == mirrors_.end() ? Tensor() : mirror->second);
    tensors.weight_decays.push_back(weight_decay(i));
    tensors.rates.push_back(slot.rate);
    tensors.of_set.push_back(slot.set >= 0);
  }
  check_any(!tensors.parameters.empty());
  const Tensor norm = ops::cuda_only::adamw(tensors,
                                            {training_.beta1, training_.beta2, training_.epsilon,
                                             training_.gradient_clip, training_.skip_nan_batches},
                                            loss, state);
  forget_gradients();
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
  std::vector<ops::cuda_only::Mirrored> list;
  for (const Slot& slot : slots_) {
    const auto found = mirrors_.find(slot.parameter.unsafeGetTensorImpl());
    if (found != mirrors_.end()) list.push_back({slot.parameter, found->second});
  }
  ops::cuda_only::write_mirrors(list);
}

}  // namespace dmamba::train
