// Queueing and capture.
#include "src/train/device_run.h"

#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/torch.h>

#include <utility>

#include "dmamba/train/schedule.h"
#include "src/train/precision.h"

namespace dmamba::train {

using torch::Tensor;

namespace {

constexpr size_t kQueuedSteps = 4;  // ahead of the device: it never waits, and a stop is prompt

ops::CapturedWork::Mode capture_mode(const std::string& graph) {
  using Mode = ops::CapturedWork::Mode;
  return graph == "on" ? Mode::kAlways : graph == "off" ? Mode::kNever : Mode::kAuto;
}

/// What an external model does in Python at each step, a replay would leave out.
std::string graph_choice(const config::Config& config, const Task& task) {
  return task.external() && config.training.graph == "auto" ? "off" : config.training.graph;
}

ops::cuda_only::StepState make_state(int64_t dropouts, torch::Device device) {
  const auto on = [&](at::ScalarType type) { return torch::TensorOptions(device).dtype(type); };
  return {torch::zeros({}, on(at::kLong)),   torch::Tensor(),
          torch::zeros({8}, on(at::kFloat)), torch::zeros({dropouts}, on(at::kLong)),
          torch::zeros({}, on(at::kDouble)), torch::zeros({}, on(at::kDouble)),
          torch::zeros({3}, on(at::kLong)),  torch::Tensor()};
}

}  // namespace

DeviceRun::DeviceRun(const config::Config& config, Task& task, AdamW& optimizer,
                     torch::Device device, Share share, const std::shared_ptr<Ranks>& ranks)
    : training_(config.training),
      begin_{config.seed,           learning_rate(config),     config.training.beta1,
             config.training.beta2, config.model.max_timestep, share.first},
      device_(device),
      task_(task),
      optimizer_(optimizer),
      state_(make_state(nn::count_dropouts(task.model()), device)),
      set_counts_(torch::zeros({task.sets(), 2}, torch::TensorOptions(device).dtype(at::kLong))),
      one_(torch::ones({}, torch::TensorOptions(device).dtype(at::kFloat))),
      stream_(device),
      side_(device) {
  for (int64_t i = 0; i < task.graphs(); ++i) {
    works_.emplace_back(capture_mode(graph_choice(config, task)), "a training step");
  }
  context_.dropout_keys = state_.dropout_keys;
  context_.first_row = share.first;
  // The gradient of a parameter that is used twice is a sum, which would not wait for the side.
  context_.side = task.external() ? nullptr : &side_;
  context_.draws_more = task.external() && graph_choice(config, task) == "off";
  context_.mirrors = optimizer_.make_mirrors(training_.precision == "bf16");
  for (size_t i = 0; i < kQueuedSteps; ++i) queued_.emplace_back(device.type());
  if (ranks) {
    sum_ = std::make_unique<GradientSum>(task.model(), ranks, 1.0 / training_.batch_size, &side_);
  }
}

void DeviceRun::set_step(const TrainingState& done) {
  const auto write = [](const Tensor& to, const std::vector<int64_t>& values) {
    to.copy_(torch::tensor(values, torch::kLong));
  };
  state_.step.fill_(done.step);
  write(state_.skipped, {done.skipped.total, done.skipped.in_a_row, 0});
  for (size_t i = 0; i < done.sets.size(); ++i) {
    write(set_counts_[static_cast<int64_t>(i)], {done.sets[i].steps, done.sets[i].skipped});
  }
}

int64_t DeviceRun::read_skipped(TrainingState& state) const {
  const Tensor counts = state_.skipped.cpu();
  const auto* found = counts.const_data_ptr<int64_t>();
  state.skipped.since_row += found[0] - state.skipped.total;
  state.skipped.total = found[0];
  state.skipped.in_a_row = found[1];
  if (found[0] > 0 && !state.sets.empty()) {
    const Tensor of_sets = set_counts_.select(1, 1).cpu();
    for (size_t i = 0; i < state.sets.size(); ++i) {
      state.sets[i].skipped = of_sets[static_cast<int64_t>(i)].item<int64_t>();
    }
  }
  return found[2];
}

ops::cuda_only::StepState DeviceRun::state_of_set() const {
  ops::cuda_only::StepState state = state_;
  if (task_.sets() > 1) {
    const Tensor counts = set_counts_[static_cast<int64_t>(set_)];
    state.set_step = counts[0];
    state.set_skipped = counts[1];
  }
  return state;
}

/// Where the parameters lie and whether they are trained: a graph holds both.
void DeviceRun::begin_burst() {
  count_changes();
  optimizer_.refresh_mirrors();
  std::vector<int64_t> identity;
  for (const Slot& slot : optimizer_.slots()) {
    identity.push_back(reinterpret_cast<int64_t>(slot.parameter.const_data_ptr()));
    identity.push_back(slot.parameter.requires_grad());
  }
  for (ops::CapturedWork& work : works_) work.expect(identity);
  // The next pass computes the gradients of other weights together then, as one after a resumption.
  if (identity != identity_) side_.expect_other_weights();
  identity_ = std::move(identity);
  if (sum_) sum_->prepare();
}

/// Whoever keeps copies of parameters looks at their versions, which a replayed graph leaves alone.
void DeviceRun::count_changes() const {
  for (const Slot& slot : optimizer_.slots()) {
    if (!slot.parameter.is_inference()) slot.parameter.unsafeGetTensorImpl()->bump_version();
  }
}

void DeviceRun::launch() {
  optimizer_.forget_gradients();  // left there by a capture that failed
  try {
    launch_pass();
  } catch (...) {
    side_.abandon();
    throw;
  }
}

void DeviceRun::launch_pass() {
  const nn::StepScope scope(context_);
  const ops::cuda_only::StepState state = state_of_set();
  task_.begin_step(begin_, state);
  torch::Tensor loss = loss_of(task_, device_, training_.precision == "bf16");
  if (sum_) {
    loss = sum_->backward(loss, task_.real_steps());
  } else {
    loss.backward(one_);
  }
  side_.join();
  optimizer_.step_on_device(loss.detach(), state, static_cast<int64_t>(set_));
}

void DeviceRun::step(int64_t step) {
  c10::Event& queued = queued_[turn_];
  turn_ = (turn_ + 1) % queued_.size();
  queued.synchronize();
  task_.load(step);
  set_ = static_cast<size_t>(task_.set_of(step));
  graph_ = static_cast<size_t>(task_.graph_of(step));
  works_[graph_].run([this] { launch(); });
  queued.record(c10::impl::VirtualGuardImpl(queued.device_type()).getStream(device_));
}

}  // namespace dmamba::train
