// Playing games: windows of encoded frames, or the layers' states.
#include "dmamba/model/atari_policy.h"

#include <torch/torch.h>

#include <algorithm>
#include <cmath>

#include "dmamba/common/error.h"
#include "dmamba/common/philox.h"
#include "src/model/device_step.h"
#include "src/model/evaluation_mode.h"
#include "src/model/window.h"
#include "src/ops/convolution.h"

namespace dmamba::model {
namespace {

using torch::Tensor;

void check_per_game(const char* what, const Tensor& t, int64_t n) {
  TORCH_CHECK(t.sizes() == at::IntArrayRef({n}) && t.is_cpu(), what, " must be (num_envs = ", n,
              ",) on the CPU, got ", t.sizes(), " on ", t.device());
}

/// The action that `uniform` in [0, 1) stands for.
int64_t choose(const float* logits, int64_t count, double temperature, double uniform) {
  const int64_t best = std::max_element(logits, logits + count) - logits;
  if (temperature == 0.0) return best;
  const auto weight = [&](int64_t i) {
    return std::exp((static_cast<double>(logits[i]) - static_cast<double>(logits[best])) /
                    temperature);
  };
  double total = 0.0;
  for (int64_t i = 0; i < count; ++i) total += weight(i);
  double left = uniform * total;
  for (int64_t i = 0; i < count; ++i) {
    left -= weight(i);
    if (left < 0.0) return i;
  }
  return best;  // rounding
}

}  // namespace

AtariPolicy::AtariPolicy(AtariDMamba model, AtariPolicyOptions options)
    : model_(std::move(model)), options_(std::move(options)), device_(model_->device()) {
  if (options_.kind != "windowed" && options_.kind != "recurrent") {
    throw ConfigError("policy '" + options_.kind +
                      "' is unknown; choose one of windowed, recurrent");
  }
  if (options_.num_envs < 1) {
    throw ConfigError("AtariPolicy: num_envs must be at least 1, got " +
                      std::to_string(options_.num_envs));
  }
  if (!(options_.temperature >= 0.0) || !std::isfinite(options_.temperature)) {
    throw ConfigError("AtariPolicy: temperature must be at least 0, got " +
                      std::to_string(options_.temperature));
  }
  if (!(options_.rtg_scale > 0.0)) {
    throw ConfigError("AtariPolicy: rtg_scale must be greater than 0, got " +
                      std::to_string(options_.rtg_scale));
  }
  if (model_->parameters().front().scalar_type() != torch::kFloat) {
    throw ConfigError("AtariPolicy: the model's parameters must be float32; call model.float()");
  }
  check_memory("AtariPolicy", options_.kind, options_.context_length, options_.forget_after);
  if (model_->config().position == "segment" &&
      options_.context_length > model_->config().context_length) {
    throw ConfigError("AtariPolicy: context_length " + std::to_string(options_.context_length) +
                      " exceeds the places that the model has learned, " +
                      std::to_string(model_->config().context_length) +
                      " (model.context_length, with model.position=segment)");
  }
  const int64_t n = options_.num_envs, K = window(), d = model_->config().d_model;
  rtg_ = torch::zeros({n}, torch::kDouble);
  timestep_ = torch::zeros({n}, torch::kLong);
  first_ = torch::zeros({n}, torch::kLong);
  seeds_ = torch::zeros({n}, torch::kLong);
  const auto zeros = [&](at::IntArrayRef sizes, at::ScalarType type) {
    return torch::zeros(sizes, torch::TensorOptions().dtype(type).device(device_));
  };
  inputs_ = make_inputs(device_, false);
  last_action_ = zeros({n}, torch::kLong);
  answer_ = zeros({n, model_->num_actions()}, torch::kFloat);
  if (device_.is_cuda()) {
    pinned_ = make_inputs(torch::kCPU, true);
    on_device_ = std::make_unique<DeviceStep>(device_);
  }
  if (keeps_windows()) {
    states_ = zeros({n, K, d}, torch::kFloat);
    actions_ = zeros({n, K}, torch::kLong);
    rtgs_ = zeros({n, K, 1}, torch::kFloat);
    mask_ = zeros({n, K}, torch::kBool);
  }
  if (options_.kind == "recurrent") state_ = model_->initial_state(n);
}

AtariPolicy::AtariPolicy(AtariPolicy&&) noexcept = default;
AtariPolicy::~AtariPolicy() = default;

bool AtariPolicy::keeps_windows() const {
  return options_.kind == "windowed" || model_->config().position == "segment";
}

/// K: steps that a window holds.
int64_t AtariPolicy::window() const {
  return options_.context_length > 0 ? options_.context_length : model_->config().context_length;
}

AtariPolicy::Inputs AtariPolicy::make_inputs(torch::Device device, bool pinned) const {
  const int64_t n = options_.num_envs;
  const auto zeros = [&](at::IntArrayRef sizes, at::ScalarType type) {
    return torch::zeros(sizes,
                        torch::TensorOptions().dtype(type).device(device).pinned_memory(pinned));
  };
  return {zeros({n, nn::kFrameStack, nn::kFrameSide, nn::kFrameSide}, torch::kByte),
          zeros({n, 1}, torch::kFloat), zeros({n, 2}, torch::kLong)};
}

void AtariPolicy::reset(const Tensor& which, const Tensor& targets, const Tensor& seeds) {
  const int64_t n = options_.num_envs;
  check_per_game("AtariPolicy.reset: which", which, n);
  check_per_game("AtariPolicy.reset: targets", targets, n);
  check_per_game("AtariPolicy.reset: seeds", seeds, n);
  TORCH_CHECK(which.scalar_type() == torch::kBool, "AtariPolicy.reset: which must be bool, got ",
              which.scalar_type());
  rtg_ = torch::where(which, targets.to(torch::kDouble), rtg_);
  seeds_ = torch::where(which, seeds.to(torch::kLong), seeds_);
  timestep_.masked_fill_(which, 0);
  first_.masked_fill_(which, 0);
  const Tensor rows = which.to(device_).unsqueeze(1);
  last_action_.masked_fill_(rows.squeeze(1), 0);
  if (!keeps_windows()) return;
  states_.masked_fill_(rows.unsqueeze(2), 0.0);
  actions_.masked_fill_(rows, 0);
  rtgs_.masked_fill_(rows.unsqueeze(2), 0.0);
  mask_.masked_fill_(rows, false);
}

Tensor AtariPolicy::act(const Tensor& frames) {
  torch::NoGradGuard no_grad;
  const EvaluationMode evaluation(*model_);
  const ops::ConvolutionSettings convolutions;
  TORCH_CHECK(frames.sizes() == inputs_.frames.sizes() && frames.scalar_type() == torch::kByte &&
                  frames.is_cpu(),
              "AtariPolicy.act: frames must be ", inputs_.frames.sizes(), " uint8 on the CPU, got ",
              frames.sizes(), " ", frames.scalar_type(), " on ", frames.device());
  TORCH_CHECK(model_->device() == device_, "AtariPolicy.act: the model moved from ", device_,
              " to ", model_->device(), " after the policy was made; make a new one");
  forget();
  begin_long_segments_anew();
  fill(on_device_ ? pinned_ : inputs_, frames);
  const auto work = [this] {
    take_in(model_->encode(inputs_.frames));
    answer_.copy_(answer());
  };
  if (on_device_) {
    inputs_.frames.copy_(pinned_.frames, /*non_blocking=*/true);
    inputs_.rtg.copy_(pinned_.rtg, /*non_blocking=*/true);
    inputs_.numbers.copy_(pinned_.numbers, /*non_blocking=*/true);
    on_device_->run(*model_, work);
  } else {
    work();
  }
  logits_ = answer_.to(torch::kCPU, torch::kFloat, /*non_blocking=*/false, /*copy=*/true);
  const Tensor actions = draw();
  last_action_.copy_(actions);
  if (keeps_windows()) actions_.select(1, -1).copy_(actions);
  return actions;
}

/// A new segment begins with the step to come: position 0 makes the layers begin anew.
void AtariPolicy::forget() {
  if (options_.forget_after == 0) return;
  first_ = torch::where(timestep_.remainder(options_.forget_after) == 0, timestep_, first_);
}

/// Segments whose places are used up go on from a new beginning, K / 2 steps ago.
void AtariPolicy::begin_long_segments_anew() {
  if (options_.kind != "recurrent" || model_->config().position != "segment") return;
  const int64_t K = model_->config().context_length, kept = K / 2;
  const Tensor which = timestep_ - first_ >= K;
  if (!which.any().item<bool>()) return;
  first_ = torch::where(which, timestep_ - kept, first_);
  if (kept == 0) return;
  model_->begin_with({states_.narrow(1, K - kept, kept), actions_.narrow(1, K - kept, kept),
                      rtgs_.narrow(1, K - kept, kept), first_.to(device_), Tensor()},
                     which.to(device_), state_);
}

void AtariPolicy::fill(const Inputs& inputs, const Tensor& frames) const {
  const int64_t K = window();
  inputs.frames.copy_(frames);
  inputs.rtg.copy_((rtg_ / options_.rtg_scale).unsqueeze(1));
  const Tensor first = options_.kind == "windowed" ? (timestep_ - (K - 1)).clamp_min(0) : first_;
  inputs.numbers.copy_(torch::stack({timestep_ - first, first}, 1));
}

void AtariPolicy::take_in(const Tensor& states) {
  newest_ = states;
  if (!keeps_windows()) return;
  push(states_, states);
  push(rtgs_, inputs_.rtg);
  push(mask_, torch::ones_like(mask_.select(1, 0)));
  push(actions_, torch::zeros_like(last_action_));  // known after the answer
}

Tensor AtariPolicy::answer() {
  const auto number = [&](int64_t i) { return inputs_.numbers.select(1, i); };
  if (options_.kind == "windowed") {
    return model_->forward_encoded({states_, actions_, rtgs_, number(1).contiguous(), mask_})
        .select(1, -1);
  }
  const Tensor position = number(0).contiguous(), first = number(1).contiguous();
  return model_->step({last_action_, inputs_.rtg, newest_, position, first, position == 0}, state_);
}

Tensor AtariPolicy::draw() const {
  const int64_t n = options_.num_envs, count = model_->num_actions();
  const Tensor actions = torch::empty({n}, torch::kLong);
  for (int64_t i = 0; i < n; ++i) {
    const common::PhiloxBlock bits =
        common::Philox{static_cast<uint64_t>(seeds_.const_data_ptr<int64_t>()[i])}(
            static_cast<uint64_t>(timestep_.const_data_ptr<int64_t>()[i]), 0,
            common::PhiloxPurpose::kAction);
    const double uniform = static_cast<double>(bits.bits64(0) >> 11) * 0x1p-53;
    const float* logits = logits_.const_data_ptr<float>() + i * count;
    if (!std::all_of(logits, logits + count, [](float x) { return std::isfinite(x); })) {
      throw Error("AtariPolicy.act: a logit of game " + std::to_string(i) +
                  " is not finite at step " +
                  std::to_string(timestep_.const_data_ptr<int64_t>()[i]) +
                  "; the model's parameters are damaged, or its training diverged");
    }
    actions.mutable_data_ptr<int64_t>()[i] = choose(logits, count, options_.temperature, uniform);
  }
  return actions;
}

void AtariPolicy::observe(const Tensor& rewards) {
  check_per_game("AtariPolicy.observe: rewards", rewards, options_.num_envs);
  rtg_ -= rewards.to(torch::kDouble);
  timestep_ += 1;
}

}  // namespace dmamba::model
