// The two policies. Windowed keeps the last K steps and shows them to the model again; recurrent
// keeps the layers' states and shows it the new step alone.
#include "dmamba/model/policy.h"

#include <algorithm>

#include "dmamba/common/error.h"
#include "src/model/evaluation_mode.h"
#include "src/model/policy_on_device.h"
#include "src/model/recurrent_cpu.h"
#include "src/model/recurrent_cuda.h"
#include "src/model/window.h"

namespace dmamba::model {

using torch::Tensor;

/// What the windowed policy knows of a model, and all that it needs of an external one.
class ActingModel {
 public:
  virtual ~ActingModel() = default;
  virtual torch::nn::Module& module() = 0;
  virtual Tensor forward(const Tensor& states, const Tensor& actions, const Tensor& returns_to_go,
                         const Tensor& timesteps, const Tensor& mask) = 0;
  virtual torch::Device device() const = 0;
  int64_t state_dim = 0, act_dim = 0, context_length = 0, max_timestep = 0;
};

namespace {

template <class Model>
class ActingModelOf final : public ActingModel {
 public:
  explicit ActingModelOf(Model model) : model_(std::move(model)) {
    state_dim = model_->state_dim();
    act_dim = model_->act_dim();
    context_length = model_->config().context_length;
    max_timestep = model_->config().max_timestep;
  }
  torch::nn::Module& module() override { return *model_; }
  Tensor forward(const Tensor& states, const Tensor& actions, const Tensor& returns_to_go,
                 const Tensor& timesteps, const Tensor& mask) override {
    return model_->forward(states, actions, returns_to_go, timesteps, mask);
  }
  torch::Device device() const override { return model_->device(); }

 private:
  Model model_;
};

void check_statistics(const char* name, const std::vector<float>& values, int64_t state_dim) {
  if (static_cast<int64_t>(values.size()) != state_dim) {
    throw ConfigError(std::string("Policy: ") + name + " has " + std::to_string(values.size()) +
                      " entries, the model's states have " + std::to_string(state_dim));
  }
}

void check_on_cpu(const char* what, const Tensor& t) {
  TORCH_CHECK(t.is_cpu(), what, " must be on the CPU, where environments are, got ", t.device());
}

/// The recurrent step without torch's operators, where that is possible, and asked for or faster:
/// with one lane only, it is slower than torch's products.
std::unique_ptr<RecurrentCpu> make_engine(const DMamba& model, const PolicyOptions& options) {
  const bool bf16 = options.weights == "bf16";
  if (!bf16 && options.weights != "fp32") {
    throw ConfigError("Policy: weights '" + options.weights +
                      "' are unknown; choose one of fp32, bf16");
  }
  const bool vectors = ops::cpu::kernels_for(kernels::Storage::kFloat32).lanes > 1;
  if (options.kind == "recurrent" && RecurrentCpu::supports(*model) && (vectors || bf16)) {
    const auto storage = bf16 ? kernels::Storage::kBFloat16 : kernels::Storage::kFloat32;
    return std::make_unique<RecurrentCpu>(model, options.num_envs, storage);
  }
  if (bf16) {
    throw ConfigError(
        "Policy: weights bf16 are for kind recurrent and a float32 model of mamba "
        "layers on the CPU; choose fp32");
  }
  return nullptr;
}

}  // namespace

Policy::Policy(const DMamba& model, PolicyOptions options)
    : Policy(std::make_unique<ActingModelOf<DMamba>>(model), model, std::move(options)) {}

Policy::Policy(const ExternalModel& model, PolicyOptions options)
    : Policy(std::make_unique<ActingModelOf<ExternalModel>>(model), DMamba(nullptr),
             std::move(options)) {}

Policy::Policy(std::unique_ptr<ActingModel> acting, DMamba model, PolicyOptions options)
    : acting_(std::move(acting)),
      model_(std::move(model)),
      options_(std::move(options)),
      device_(acting_->device()) {
  if (options_.kind != "windowed" && options_.kind != "recurrent") {
    throw ConfigError("policy '" + options_.kind +
                      "' is unknown; choose one of windowed, recurrent");
  }
  if (options_.num_envs < 1) {
    throw ConfigError("Policy: num_envs must be at least 1, got " +
                      std::to_string(options_.num_envs));
  }
  if (!model_ && (options_.kind != "windowed" || options_.weights != "fp32")) {
    throw ConfigError("Policy: a model of your own acts with kind windowed and weights fp32, got " +
                      options_.kind + " and " + options_.weights);
  }
  check_memory("Policy", options_.kind, options_.context_length, options_.forget_after);
  if (model_) {
    engine_ = make_engine(model_, options_);
    if (options_.kind == "recurrent" && device_.is_cuda()) {
      cuda_engine_ = RecurrentCuda::make(model_, options_.num_envs);
    }
  }
  const int64_t n = options_.num_envs;
  const int64_t K = options_.context_length > 0 ? options_.context_length : acting_->context_length;
  const int64_t state_dim = acting_->state_dim, act_dim = acting_->act_dim;
  check_statistics("state_mean", options_.state_mean, state_dim);
  check_statistics("state_std", options_.state_std, state_dim);
  rtg_ = torch::zeros({n}, torch::kDouble);
  timestep_ = torch::zeros({n}, torch::kLong);
  first_ = torch::ones({n}, torch::kBool);
  const auto zeros = [&](at::IntArrayRef sizes, at::ScalarType type) {
    return torch::zeros(sizes, torch::TensorOptions().dtype(type).device(device_));
  };
  last_action_ = zeros({n, act_dim}, torch::kFloat);
  if (device_.is_cuda()) {
    on_device_ = std::make_unique<PolicyOnDevice>(n, state_dim, act_dim, device_);
  }
  if (options_.kind == "windowed") {
    states_ = zeros({n, K, state_dim}, torch::kFloat);
    actions_ = zeros({n, K, act_dim}, torch::kFloat);
    rtgs_ = zeros({n, K, 1}, torch::kFloat);
    timesteps_ = zeros({n, K}, torch::kLong);
    mask_ = zeros({n, K}, torch::kBool);
  } else if (engine_ == nullptr && cuda_engine_ == nullptr) {
    state_ = model_->initial_state(n);
  }
}

Policy::Policy(Policy&&) noexcept = default;
Policy::~Policy() = default;

void Policy::reset(const Tensor& which, const Tensor& targets) {
  const int64_t n = options_.num_envs;
  TORCH_CHECK(which.sizes() == at::IntArrayRef({n}) && which.scalar_type() == torch::kBool,
              "Policy.reset: which must be (num_envs = ", n, ",) bool, got ", which.sizes(), " ",
              which.scalar_type());
  TORCH_CHECK(targets.sizes() == at::IntArrayRef({n}),
              "Policy.reset: targets must be (num_envs = ", n, ",), got ", targets.sizes());
  check_on_cpu("Policy.reset: which", which);
  check_on_cpu("Policy.reset: targets", targets);
  rtg_ = torch::where(which, targets.to(torch::kDouble), rtg_);
  timestep_.masked_fill_(which, 0);
  first_.logical_or_(which);
  const Tensor anew = which.to(device_).unsqueeze(1);
  last_action_.masked_fill_(anew, 0.0);
  if (options_.kind != "windowed") return;  // `first_` makes the layers begin anew
  const Tensor rows = anew.unsqueeze(2);
  states_.masked_fill_(rows, 0.0);
  actions_.masked_fill_(rows, 0.0);
  rtgs_.masked_fill_(rows, 0.0);
  timesteps_.masked_fill_(anew, 0);
  mask_.masked_fill_(anew, false);
}

Tensor Policy::act(const Tensor& observations) {
  torch::NoGradGuard no_grad;
  EvaluationMode evaluation(acting_->module());
  const int64_t n = options_.num_envs;
  TORCH_CHECK(observations.sizes() == at::IntArrayRef({n, acting_->state_dim}),
              "Policy.act: observations must be (num_envs = ", n,
              ", state_dim = ", acting_->state_dim, "), got ", observations.sizes());
  check_on_cpu("Policy.act: observations", observations);
  TORCH_CHECK(acting_->device() == device_, "Policy.act: the model moved from ", device_, " to ",
              acting_->device(), " after the policy was made; make a new one");
  const Seen seen = as_trained(observations);
  const Tensor actions = on_device_ ? answer_on_device(seen) : answer(seen);
  acted_ = true;
  if (on_device_) return actions;
  last_action_ = actions;
  return last_action_.clone();
}

Tensor Policy::answer_on_device(const Seen& seen) {
  on_device_->copy_in(seen.states, seen.rtg, seen.timesteps, seen.first);
  if (cuda_engine_) {
    cuda_engine_->act(on_device_->rows(), last_action_);
    return on_device_->copy_out(last_action_);
  }
  const auto work = [this] { last_action_.copy_(answer(on_device_->seen())); };
  if (model_) {
    on_device_->run(*model_, work);
  } else {
    work();
  }
  return on_device_->copy_out(last_action_);
}

Tensor Policy::answer(const Seen& seen) {
  return options_.kind == "windowed" ? act_windowed(seen) : act_recurrent(seen);
}

/// Plain loops: for one environment each of torch's operators would cost more than all the rest.
Seen Policy::as_trained(const Tensor& observations) const {
  const int64_t n = options_.num_envs, state_dim = acting_->state_dim;
  const Tensor raw = observations.to(torch::kFloat).contiguous();
  Seen seen{torch::empty({n, state_dim}), torch::empty({n, 1}), torch::empty({n}, torch::kLong),
            first_};
  const float *from = raw.const_data_ptr<float>(), *mean = options_.state_mean.data(),
              *std = options_.state_std.data();
  const double* rtg = rtg_.const_data_ptr<double>();
  const int64_t *timestep = timestep_.const_data_ptr<int64_t>(), last = acting_->max_timestep - 1;
  float *states = seen.states.mutable_data_ptr<float>(),
        *scaled = seen.rtg.mutable_data_ptr<float>();
  int64_t* timesteps = seen.timesteps.mutable_data_ptr<int64_t>();
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < state_dim; ++j) {
      states[i * state_dim + j] = (from[i * state_dim + j] - mean[j]) / std[j];
    }
    scaled[i] = static_cast<float>(rtg[i] / options_.rtg_scale);
    timesteps[i] = std::min(timestep[i], last);
  }
  return seen;
}

Tensor Policy::act_windowed(const Seen& seen) {
  push(states_, seen.states);
  push(rtgs_, seen.rtg);
  push(timesteps_, seen.timesteps);
  push(mask_, torch::ones_like(seen.first));
  push(actions_,
       torch::zeros_like(last_action_));  // not yet known; its token comes after the answer
  const Tensor actions = acting_->forward(states_, actions_, rtgs_, timesteps_, mask_)
                             .select(1, -1)
                             .to(torch::kFloat)
                             .contiguous();
  actions_.select(1, -1).copy_(actions);
  return actions;
}

Tensor Policy::act_recurrent(const Seen& seen) {
  if (engine_) return engine_->act(seen.rtg, seen.states, seen.timesteps, seen.first);
  return model_->step({last_action_, seen.rtg, seen.states, seen.timesteps, seen.first}, state_);
}

void Policy::observe(const Tensor& rewards) {
  TORCH_CHECK(rewards.sizes() == at::IntArrayRef({options_.num_envs}),
              "Policy.observe: rewards must be (num_envs = ", options_.num_envs, ",), got ",
              rewards.sizes());
  check_on_cpu("Policy.observe: rewards", rewards);
  if (engine_ && acted_) engine_->follow(last_action_, timestep_);
  acted_ = false;
  const Tensor raw = rewards.to(torch::kDouble).contiguous();
  const double* reward = raw.const_data_ptr<double>();
  double* rtg = rtg_.mutable_data_ptr<double>();
  int64_t* timestep = timestep_.mutable_data_ptr<int64_t>();
  bool* first = first_.mutable_data_ptr<bool>();
  for (int64_t i = 0; i < options_.num_envs; ++i) {
    rtg[i] -= reward[i];
    ++timestep[i];
    first[i] = options_.forget_after > 0 && timestep[i] % options_.forget_after == 0;
  }
}

}  // namespace dmamba::model
