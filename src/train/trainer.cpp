// The training step and the burst around it.
//
// Bits on CUDA. No op of the step adds with atomics or chooses its algorithm by timing: the dmamba
// ops reduce in a fixed order, and so do ATen's where a width is not the kernels' (the timestep
// embedding's backward, embedding_dense_backward, adds colliding rows in the order of their index,
// one warp a column, and above 3072 indices sorts them first). cuBLAS gives the same bits as long
// as a stream has a workspace of its own, and torch gives each (handle, stream) one. So neither
// setDeterministicAlgorithms (which also fills every new tensor with NaN) nor
// CUBLAS_WORKSPACE_CONFIG is needed, and both may be set.
#include "dmamba/train/trainer.h"

#include <ATen/Parallel.h>
#include <c10/core/DeviceGuard.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <optional>
#include <set>

#include "dmamba/common/error.h"
#include "dmamba/common/philox.h"
#include "dmamba/config/yaml.h"
#include "dmamba/train/device.h"
#include "dmamba/train/schedule.h"
#include "dmamba/train/transfer.h"
#include "src/ops/convolution.h"
#include "src/train/device_run.h"
#include "src/train/gradient_sum.h"
#include "src/train/kept_generators.h"
#include "src/train/memory.h"
#include "src/train/precision.h"
#include "src/train/task.h"

namespace dmamba::train {
namespace {

using torch::Tensor;

TrainingState initial_state(const config::Config& config, const Task& task) {
  TrainingState s;
  s.config = config;
  task.describe(s);
  return s;
}

/// Whether a run may be continued with another value of this key: what only says when something is
/// written or measured. `threads` and `device` may change the bits as another machine may. Without
/// a cosine, nothing that was done depends on how many steps were to come.
bool may_differ(const std::string& key, const config::Config& config) {
  static const std::set<std::string> kFree{"name",
                                           "dataset.environment",
                                           "dataset.max_episode_length",
                                           "dataset.cache",
                                           "training.log_every",
                                           "training.checkpoint_every",
                                           "training.keep_checkpoints",
                                           "training.skip_nan_batches",
                                           "training.threads",
                                           "training.device",
                                           "training.graph",
                                           "training.data"};
  // A bandit's choices follow from what it is told by evaluations.
  const bool tells = key.starts_with("evaluation.") || key == "dataset.environment" ||
                     key == "dataset.max_episode_length";
  if (tells && config.training.context == "bandit") return key == "evaluation.every";
  if (key == "training.steps") {
    return config.training.schedule == "constant" || config.training.cosine_tokens > 0;
  }
  return key.starts_with("evaluation.") || kFree.count(key) > 0;
}

/// Throws CheckpointError unless the run that wrote the checkpoint did the steps that this run
/// would have done.
void check_same_run(const std::filesystem::path& folder, const TrainingState& saved,
                    const TrainingState& mine, const std::string& dataset) {
  std::string differing;
  for (const auto& [key, theirs, ours] : config::differences(saved.config, mine.config)) {
    if (may_differ(key, mine.config)) continue;
    differing += (differing.empty() ? "" : "; ") + key + " was " + theirs + ", now " + ours;
  }
  if (!differing.empty()) {
    throw CheckpointError(folder.string() + ": was written by another run: " + differing +
                          ". Continue with the same values, or start anew");
  }
  if (saved.external_model.empty() != mine.external_model.empty()) {
    const std::string& theirs = saved.external_model;
    throw CheckpointError(folder.string() +
                          (theirs.empty()
                               ? ": was written by a run of the built-in model; leave model= out"
                               : ": was written by a run with a model of its user's, " + theirs +
                                     "; continue it from Python: dmamba.train(None, output=RUN, "
                                     "resume=True, model=" +
                                     theirs + ")"));
  }
  if (saved.state_dim != mine.state_dim || saved.act_dim != mine.act_dim ||
      saved.state_mean != mine.state_mean || saved.state_std != mine.state_std) {
    throw CheckpointError(folder.string() + ": was written with other data than " + dataset +
                          " (dataset.path): sizes, mean or deviation of the states differ");
  }
  const auto same_set = [](const SetState& a, const SetState& b) {
    return a.name == b.name && a.state_dim == b.state_dim && a.act_dim == b.act_dim &&
           a.state_mean == b.state_mean && a.state_std == b.state_std;
  };
  if (!std::equal(saved.sets.begin(), saved.sets.end(), mine.sets.begin(), mine.sets.end(),
                  same_set)) {
    throw CheckpointError(folder.string() +
                          ": was written with other data than pretraining.sets: "
                          "names, sizes, mean or deviation of the states differ");
  }
  if (saved.num_actions != mine.num_actions || saved.data_digest != mine.data_digest) {
    throw CheckpointError(folder.string() + ": was written with other data than " + dataset +
                          " (dataset.path): the actions, rewards or episodes differ");
  }
}

torch::Device device_of(const config::Config& config) {
  config::validate(config);
  const torch::Device device = resolve_device(config.training.device, "training.device");
  check_precision(config.training.precision, device);
  return device;
}

/// This rank's part of every batch.
Share share_of(const config::Config& config, const Ranks* ranks) {
  const int64_t batch = config.training.batch_size;
  if (ranks == nullptr) return {0, batch};
  const int64_t world = ranks->world(), share = batch / world;
  if (batch % world != 0) {
    throw ConfigError("training.batch_size: " + std::to_string(batch) + " segments for " +
                      std::to_string(world) + " ranks, which need equal shares; use " +
                      (share > 0 ? std::to_string(share * world) + " or " : "") +
                      std::to_string((share + 1) * world) + ", or another number of ranks");
  }
  return {ranks->rank() * share, share};
}

}  // namespace

Trainer::Trainer(const config::Config& config, std::shared_ptr<const data::TrajectoryStore> store,
                 model::DMamba model, const std::shared_ptr<Ranks>& ranks,
                 const std::optional<data::StateStatistics>& statistics)
    : Trainer(config, device_of(config),
              make_task(config, std::move(store), std::move(model), device_of(config),
                        share_of(config, ranks.get()), statistics),
              ranks) {}

Trainer::Trainer(const config::Config& config, std::shared_ptr<const data::TrajectoryStore> store,
                 model::ExternalModel model, const std::shared_ptr<Ranks>& ranks,
                 const std::optional<data::StateStatistics>& statistics)
    : Trainer(config, device_of(config),
              make_task(config, std::move(store), std::move(model), device_of(config),
                        share_of(config, ranks.get()), statistics),
              ranks) {}

Trainer::Trainer(const config::Config& config, std::shared_ptr<const data::FrameStore> store,
                 model::AtariDMamba model, const std::shared_ptr<Ranks>& ranks)
    : Trainer(config, device_of(config),
              make_task(config, std::move(store), std::move(model), device_of(config),
                        share_of(config, ranks.get())),
              ranks) {}

Trainer::Trainer(const config::Config& config,
                 const std::vector<std::shared_ptr<const data::TrajectoryStore>>& stores,
                 model::MultiDMamba model)
    : Trainer(config, device_of(config),
              make_task(config, stores, std::move(model), device_of(config)), nullptr) {}

Trainer::Trainer(const config::Config& config, torch::Device device, std::unique_ptr<Task> task,
                 std::shared_ptr<Ranks> ranks)
    : ranks_(std::move(ranks)),
      task_(std::move(task)),
      state_(initial_state(config, *task_)),
      device_(device),
      optimizer_(task_->model(), config.training, config.transfer.learning_rates) {
  freeze(task_->model(), config.transfer.freeze);
  if (config.training.threads > 0) at::set_num_threads(static_cast<int>(config.training.threads));
  keep_freed_memory();
  if (device_.is_cuda()) {
    on_device_ = std::make_unique<DeviceRun>(config, *task_, optimizer_, device_,
                                             share_of(config, ranks_.get()), ranks_);
    loss_sum_ = on_device_->state().loss_sum;
    norm_sum_ = on_device_->state().norm_sum;
    return;
  }
  host_ = std::make_unique<nn::StepContext>();
  host_->dropout_keys = torch::zeros({nn::count_dropouts(task_->model())}, torch::kLong);
  host_->first_row = share_of(config, ranks_.get()).first;
  host_->draws_more = task_->external();
  if (ranks_) {
    sum_ = std::make_unique<GradientSum>(task_->model(), ranks_, 1.0 / config.training.batch_size,
                                         /*side=*/nullptr);
  }
  loss_sum_ = torch::zeros({}, torch::kDouble);
  norm_sum_ = torch::zeros({}, torch::kDouble);
}

Trainer::~Trainer() = default;

bool Trainer::data_on_device() const { return task_->resident(); }

bool Trainer::uses_graph() const { return on_device_ && on_device_->uses_graph(); }

/// Whether the step counts; if not, it is one that is not finite too many.
bool Trainer::step_on_host() {
  const config::Config& config = state_.config;
  auto* keys = host_->dropout_keys.mutable_data_ptr<int64_t>();
  for (int64_t i = 0; i < host_->dropout_keys.numel(); ++i) {
    keys[i] = static_cast<int64_t>(common::dropout_key(
        config.seed, static_cast<uint64_t>(state_.step), static_cast<uint32_t>(i)));
  }
  // Somebody else's, or of a step that was broken off.
  optimizer_.forget_gradients();
  const nn::StepScope scope(*host_);
  task_->load(state_.step);
  Tensor loss = loss_of(*task_, device_, config.training.precision == "bf16");
  if (sum_) {
    loss = sum_->backward(loss, task_->real_steps());
  } else {
    loss.backward();
  }
  const int64_t set = task_->set_of(state_.step);
  if (!std::isfinite(loss.item<double>())) return skip_on_host(static_cast<size_t>(set));
  const Tensor norm = optimizer_.step(learning_rate(config, state_.step), set);
  if (!std::isfinite(norm.item<double>())) return skip_on_host(static_cast<size_t>(set));
  loss_sum_ += loss.detach();
  norm_sum_ += norm;
  state_.skipped.in_a_row = 0;
  return true;
}

bool Trainer::skip_on_host(size_t set) {
  optimizer_.forget_gradients();
  SkippedState& skipped = state_.skipped;
  if (skipped.in_a_row >= state_.config.training.skip_nan_batches) return false;
  ++skipped.in_a_row;
  ++skipped.since_row;
  ++skipped.total;
  if (!state_.sets.empty()) ++state_.sets[set].skipped;
  return true;
}

void Trainer::count_step() {
  if (!state_.sets.empty()) ++state_.sets[static_cast<size_t>(task_->set_of(state_.step))].steps;
  ++state_.step;
  ++state_.steps_summed;
}

/// Forgets steps that have moved nothing.
void Trainer::go_back_to(int64_t step) {
  for (int64_t undone = step; undone < state_.step; ++undone) {
    --state_.steps_summed;
    if (!state_.sets.empty()) --state_.sets[static_cast<size_t>(task_->set_of(undone))].steps;
  }
  set_step(step);
}

/// Reads the running sums off the device. They go on from there: summing in two pieces would round
/// otherwise than an uninterrupted run. Finds out whether the run has been stopped.
void Trainer::read_sums() {
  state_.loss_sum = loss_sum_.item<double>();
  state_.gradient_norm_sum = norm_sum_.item<double>();
  if (!on_device_) return;
  const int64_t stopped_at = on_device_->read_skipped(state_);
  if (stopped_at == 0) return;
  go_back_to(stopped_at - 1);
  stopped_ = true;
}

void Trainer::refuse_to_go_on() {
  const config::Config& config = state_.config;
  const int64_t skipped = state_.skipped.in_a_row;
  throw NotFiniteError(
      "the loss or its gradient is not finite in step " + std::to_string(state_.step + 1) +
      " (seed " + std::to_string(config.seed) + ")" +
      (skipped > 0 ? ", after " + std::to_string(skipped) + " before it that were passed over"
                   : std::string()) +
      "; its batch: " + task_->describe_batch(state_.step) +
      ". Parameters and moments are those of step " + std::to_string(state_.step - skipped) +
      ". A lower training.learning_rate or training.gradient_clip may avoid it, "
      "training.skip_nan_batches passes over such batches");
}

/// After read_sums().
MetricsRow Trainer::take_row() {
  const double n = static_cast<double>(state_.steps_summed - state_.skipped.since_row);
  const MetricsRow row{state_.step, state_.loss_sum / n, state_.gradient_norm_sum / n,
                       learning_rate(state_.config, state_.step - 1), state_.skipped.since_row};
  loss_sum_.zero_();
  norm_sum_.zero_();
  state_.steps_summed = 0;
  state_.skipped.since_row = 0;
  return row;
}

std::vector<MetricsRow> Trainer::run(double seconds, int64_t max_steps) {
  if (stopped_) refuse_to_go_on();
  using Clock = std::chrono::steady_clock;
  const auto end = Clock::now() + std::chrono::duration<double>(seconds);
  const int64_t steps = state_.config.training.steps;
  const int64_t last = max_steps < 0 ? steps : std::min(steps, state_.step + max_steps);
  std::vector<MetricsRow> rows;
  const c10::DeviceGuard current_device(device_);
  std::optional<Tf32Products> products;
  std::optional<ops::ConvolutionSettings> convolutions;
  std::optional<DeviceRun::Burst> burst;
  if (on_device_) {
    products.emplace(state_.config.training.precision == "tf32");
    convolutions.emplace();
    burst.emplace(*on_device_);
  }
  if (sum_) sum_->prepare();
  std::optional<KeptGenerators> generators;
  if (task_->external()) generators.emplace(device_);
  // A region of the caller's would also cast the backward pass.
  const Autocast no_autocast(device_.type(), false);
  task_->model().train();
  while (state_.step < last) {
    if (on_device_) {
      on_device_->step(state_.step);
    } else {
      stopped_ = !step_on_host();
      if (stopped_) break;
    }
    count_step();
    if (state_.step % state_.config.training.log_every == 0 || finished()) {
      read_sums();
      if (stopped_) break;
      rows.push_back(take_row());
    }
    if (Clock::now() >= end) break;
  }
  if (stopped_ && rows.empty()) refuse_to_go_on();
  return rows;  // the next call says why there are no more
}

void Trainer::save(const std::filesystem::path& folder) {
  const bool known = stopped_;
  read_sums();
  if (stopped_ && !known) refuse_to_go_on();  // the caller takes it for a later step
  save_checkpoint(folder, state_, task_->model(), optimizer_);
}

void Trainer::load(const std::filesystem::path& folder) {
  const TrainingState saved = read_training_state(folder);
  check_same_run(folder, saved, state_, task_->store().name());
  load_parameters(folder, task_->model());
  load_optimizer(folder, optimizer_);
  state_.sets = saved.sets;
  state_.skipped = saved.skipped;
  stopped_ = false;
  if (!saved.contexts.note.empty()) choose_contexts(saved.contexts);
  set_step(saved.step);
  loss_sum_.fill_(saved.loss_sum);
  norm_sum_.fill_(saved.gradient_norm_sum);
  state_.steps_summed = saved.steps_summed;
}

void Trainer::choose_contexts(const ContextState& contexts) {
  task_->choose_contexts(contexts.lengths);
  state_.contexts = contexts;
}

void Trainer::synchronize() {
  if (!ranks_) return;
  const torch::NoGradGuard no_grad;
  SkippedState& skipped = state_.skipped;
  const Tensor counts = torch::tensor({state_.step, state_.steps_summed, skipped.total,
                                       skipped.in_a_row, skipped.since_row},
                                      torch::kLong)
                            .to(device_);
  std::vector<Tensor> shared{counts, loss_sum_, norm_sum_};
  for (const Slot& slot : optimizer_.slots()) {
    for (const Tensor& t : {slot.parameter.detach(), slot.first_moment, slot.second_moment}) {
      shared.push_back(t);
    }
  }
  ranks_->take_from_first(shared);
  const Tensor found = counts.cpu();
  const auto* values = found.const_data_ptr<int64_t>();
  state_.steps_summed = values[1];
  skipped = {values[2], values[3], values[4]};
  set_step(values[0]);
}

void Trainer::release() {
  if (on_device_) on_device_->release();
}

void Trainer::set_step(int64_t step) {
  state_.step = step;
  optimizer_.set_steps(step - state_.skipped.total);
  for (size_t i = 0; i < state_.sets.size(); ++i) {
    optimizer_.set_steps_of_set(i, state_.sets[i].steps - state_.sets[i].skipped);
  }
  if (on_device_) on_device_->set_step(state_);
}

}  // namespace dmamba::train
