// The two policies. Windowed keeps the last K steps and shows them to the model again; recurrent
// keeps the layers' states and shows it the new step alone.
#include "dmamba/model/policy.h"

#include "dmamba/common/error.h"

namespace dmamba::model {
namespace {

using torch::Tensor;

Tensor statistics(const char* name, const std::vector<float>& values, int64_t state_dim) {
  if (static_cast<int64_t>(values.size()) != state_dim) {
    throw ConfigError(std::string("Policy: ") + name + " has " + std::to_string(values.size()) +
                      " entries, the model's states have " + std::to_string(state_dim));
  }
  return torch::tensor(values);
}

/// Moves a window one step on: the oldest entry leaves, `newest` (num_envs, ...) joins at the end.
void push(Tensor& window, const Tensor& newest) {
  window = torch::cat({window.slice(1, 1), newest.unsqueeze(1)}, 1);
}

/// Puts the model into evaluation mode for a scope.
class EvaluationMode {
 public:
  explicit EvaluationMode(DMamba& model) : model_(model), training_(model->is_training()) {
    if (training_) model_->eval();
  }
  ~EvaluationMode() {
    if (training_) model_->train();
  }

 private:
  DMamba& model_;
  bool training_;
};

}  // namespace

Policy::Policy(DMamba model, PolicyOptions options)
    : model_(std::move(model)), options_(std::move(options)) {
  if (options_.kind != "windowed" && options_.kind != "recurrent") {
    throw ConfigError("policy '" + options_.kind +
                      "' is unknown; choose one of windowed, recurrent");
  }
  if (options_.num_envs < 1) {
    throw ConfigError("Policy: num_envs must be at least 1, got " +
                      std::to_string(options_.num_envs));
  }
  const int64_t n = options_.num_envs, K = model_->config().context_length;
  const int64_t state_dim = model_->state_dim(), act_dim = model_->act_dim();
  mean_ = statistics("state_mean", options_.state_mean, state_dim);
  std_ = statistics("state_std", options_.state_std, state_dim);
  rtg_ = torch::zeros({n}, torch::kDouble);
  timestep_ = torch::zeros({n}, torch::kLong);
  first_ = torch::ones({n}, torch::kBool);
  last_action_ = torch::zeros({n, act_dim});
  if (options_.kind == "windowed") {
    states_ = torch::zeros({n, K, state_dim});
    actions_ = torch::zeros({n, K, act_dim});
    rtgs_ = torch::zeros({n, K, 1});
    timesteps_ = torch::zeros({n, K}, torch::kLong);
    mask_ = torch::zeros({n, K}, torch::kBool);
  } else {
    state_ = model_->initial_state(n);
  }
}

void Policy::reset(const Tensor& which, const Tensor& targets) {
  const int64_t n = options_.num_envs;
  TORCH_CHECK(which.sizes() == at::IntArrayRef({n}) && which.scalar_type() == torch::kBool,
              "Policy.reset: which must be (num_envs = ", n, ",) bool, got ", which.sizes(), " ",
              which.scalar_type());
  TORCH_CHECK(targets.sizes() == at::IntArrayRef({n}),
              "Policy.reset: targets must be (num_envs = ", n, ",), got ", targets.sizes());
  rtg_ = torch::where(which, targets.to(torch::kDouble), rtg_);
  timestep_.masked_fill_(which, 0);
  first_.logical_or_(which);
  last_action_.masked_fill_(which.unsqueeze(1), 0.0);
  if (options_.kind != "windowed") return;  // `first_` makes the layers begin anew
  const Tensor rows = which.view({n, 1, 1});
  states_.masked_fill_(rows, 0.0);
  actions_.masked_fill_(rows, 0.0);
  rtgs_.masked_fill_(rows, 0.0);
  timesteps_.masked_fill_(which.unsqueeze(1), 0);
  mask_.masked_fill_(which.unsqueeze(1), false);
}

Tensor Policy::act(const Tensor& observations) {
  torch::NoGradGuard no_grad;
  EvaluationMode evaluation(model_);
  const int64_t n = options_.num_envs;
  TORCH_CHECK(observations.sizes() == at::IntArrayRef({n, model_->state_dim()}),
              "Policy.act: observations must be (num_envs = ", n,
              ", state_dim = ", model_->state_dim(), "), got ", observations.sizes());
  const Tensor states = (observations.to(torch::kFloat) - mean_) / std_;
  const Tensor rtg = (rtg_ / options_.rtg_scale).to(torch::kFloat).unsqueeze(1);
  last_action_ =
      options_.kind == "windowed" ? act_windowed(states, rtg) : act_recurrent(states, rtg);
  return last_action_.clone();
}

Tensor Policy::act_windowed(const Tensor& states, const Tensor& rtg) {
  push(states_, states);
  push(rtgs_, rtg);
  push(timesteps_, timestep_.clamp_max(model_->config().max_timestep - 1));
  push(mask_, torch::ones_like(first_));
  push(actions_,
       torch::zeros_like(last_action_));  // not yet known; its token comes after the answer
  const Tensor actions =
      model_->forward(states_, actions_, rtgs_, timesteps_, mask_).select(1, -1).contiguous();
  actions_.select(1, -1).copy_(actions);
  return actions;
}

Tensor Policy::act_recurrent(const Tensor& states, const Tensor& rtg) {
  return model_->step(
      {last_action_, rtg, states, timestep_.clamp_max(model_->config().max_timestep - 1), first_},
      state_);
}

void Policy::observe(const Tensor& rewards) {
  TORCH_CHECK(rewards.sizes() == at::IntArrayRef({options_.num_envs}),
              "Policy.observe: rewards must be (num_envs = ", options_.num_envs, ",), got ",
              rewards.sizes());
  rtg_ -= rewards.to(torch::kDouble);
  timestep_ += 1;
  first_.zero_();
}

}  // namespace dmamba::model
