// Queueing and capture.
#include "src/train/device_run.h"

#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/torch.h>

#include <exception>

#include "dmamba/common/error.h"
#include "dmamba/common/log.h"
#include "dmamba/train/schedule.h"
#include "src/train/batch_loss.h"

namespace dmamba::train {
namespace {

constexpr int64_t kDropoutKeys = 256;  // of a step
constexpr int kWarmSteps = 2;
constexpr size_t kQueuedSteps = 4;  // ahead of the device: it never waits, and a stop is prompt

ops::cuda_only::StepState make_state(torch::Device device) {
  const auto on = [&](at::ScalarType type) { return torch::TensorOptions(device).dtype(type); };
  return {torch::zeros({}, on(at::kLong)), torch::zeros({3}, on(at::kFloat)),
          torch::zeros({kDropoutKeys}, on(at::kLong)), torch::zeros({}, on(at::kDouble)),
          torch::zeros({}, on(at::kDouble))};
}

}  // namespace

DeviceRun::DeviceRun(const config::Config& config, model::DMamba model, BatchLoader& batches,
                     AdamW& optimizer, torch::Device device)
    : training_(config.training),
      begin_{config.seed, learning_rate(config.training), config.training.beta1,
             config.training.beta2, config.model.max_timestep},
      model_(std::move(model)),
      batches_(batches),
      optimizer_(optimizer),
      state_(make_state(device)),
      one_(torch::ones({}, torch::TensorOptions(device).dtype(at::kFloat))),
      stream_(device),
      side_(device) {
  context_.dropout_keys = state_.dropout_keys;
  context_.side = &side_;
  context_.mirrors = optimizer_.make_mirrors(training_.precision == "bf16");
  for (size_t i = 0; i < kQueuedSteps; ++i) queued_.emplace_back(device.type());
}

void DeviceRun::set_step(int64_t step) { state_.step.fill_(step); }

/// Where the parameters lie and whether they are trained: a graph holds both.
std::vector<const void*> DeviceRun::identity() const {
  std::vector<const void*> identity;
  for (const Slot& slot : optimizer_.slots()) {
    identity.push_back(slot.parameter.requires_grad() ? slot.parameter.const_data_ptr() : nullptr);
    identity.push_back(slot.parameter.const_data_ptr());
  }
  return identity;
}

void DeviceRun::begin_burst() {
  optimizer_.refresh_mirrors();
  if (std::vector<const void*> now = identity(); now != identity_) {
    identity_ = std::move(now);
    graph_.reset();
    warm_ = 0;
  }
}

void DeviceRun::launch() {
  const nn::StepScope scope(context_);
  const Batch& b = batches_.batch();
  ops::cuda_only::begin_step(begin_, state_, batches_.resident(),
                             {b.states, b.actions, b.returns_to_go, b.timesteps, b.mask});
  const torch::Tensor loss = batch_loss(*model_, b, training_.precision == "bf16");
  loss.backward(one_);
  side_.join();
  optimizer_.step_on_device(loss.detach(), state_);
}

bool DeviceRun::try_capture() {
  auto graph = std::make_unique<ops::Graph>();
  try {
    graph->capture([this] { launch(); });
  } catch (const std::exception& error) {
    for (const Slot& slot : optimizer_.slots()) slot.parameter.mutable_grad().reset();
    if (training_.graph == "on") {
      throw Error(std::string("training.graph: on, but a step cannot be captured: ") +
                  error.what());
    }
    log_warning(std::string("a step cannot be captured as a CUDA graph, it runs op by op: ") +
                error.what());
    capture_failed_ = true;
    return false;
  }
  graph_ = std::move(graph);
  return true;
}

void DeviceRun::step(int64_t step) {
  c10::Event& queued = queued_[turn_];
  turn_ = (turn_ + 1) % queued_.size();
  queued.synchronize();
  batches_.load(step);
  const bool may_capture = training_.graph != "off" && !capture_failed_ && warm_ >= kWarmSteps;
  if (graph_ || (may_capture && try_capture())) {
    graph_->replay();
  } else {
    launch();
    ++warm_;
  }
  queued.record(c10::impl::VirtualGuardImpl(queued.device_type()).getStream(model_->device()));
}

}  // namespace dmamba::train
