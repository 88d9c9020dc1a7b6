// The training step and the burst around it.
//
// Bits on CUDA. No op of the step adds with atomics or chooses its algorithm by timing: the dmamba
// ops and ATen's fused AdamW, norms and sums reduce in a fixed order; the timestep embedding's
// backward (embedding_dense_backward) adds colliding rows in the order of their index, one warp a
// column, and above 3072 indices sorts them first. cuBLAS gives the same bits as long as a stream
// has a workspace of its own, and torch gives each (handle, stream) one. So neither
// setDeterministicAlgorithms (which also fills every new tensor with NaN) nor
// CUBLAS_WORKSPACE_CONFIG is needed, and both may be set.
#include "dmamba/train/trainer.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Parallel.h>
#include <c10/core/DeviceGuard.h>

#include <chrono>
#include <cmath>
#include <optional>
#include <set>

#include "dmamba/common/error.h"
#include "dmamba/common/philox.h"
#include "dmamba/config/yaml.h"
#include "dmamba/data/statistics.h"
#include "dmamba/train/device.h"
#include "dmamba/train/schedule.h"
#include "src/train/memory.h"
#include "src/train/precision.h"

namespace dmamba::train {
namespace {

using torch::Tensor;

/// The seed of the generator that a step's dropout draws from.
uint64_t dropout_seed(uint64_t seed, int64_t step) {
  const auto purpose = common::PhiloxPurpose::kDropout;
  return common::Philox{seed}(static_cast<uint64_t>(step), 0, purpose).bits64(0);
}

/// Gives torch's default CPU generator back as it was.
class GeneratorGuard {
 public:
  GeneratorGuard() : generator_(at::detail::getDefaultCPUGenerator()) {
    const std::lock_guard<std::mutex> lock(generator_.mutex());
    saved_ = generator_.get_state();
  }
  ~GeneratorGuard() {
    const std::lock_guard<std::mutex> lock(generator_.mutex());
    generator_.set_state(saved_);
  }
  /// Dropout draws from the default generator: seeded by (seed, step), a step's masks depend on
  /// nothing that went before.
  void seed_step(uint64_t seed, int64_t step) {
    const std::lock_guard<std::mutex> lock(generator_.mutex());
    generator_.set_current_seed(dropout_seed(seed, step));
  }

 private:
  at::Generator generator_;
  Tensor saved_;
};

TrainingState initial_state(const config::Config& config, const data::TrajectoryStore& store) {
  config::validate(config);
  TrainingState s;
  s.config = config;
  s.state_dim = store.state_dim();
  s.act_dim = store.act_dim();
  data::StateStatistics statistics = data::state_statistics(store);
  s.state_mean = std::move(statistics.mean);
  s.state_std = std::move(statistics.std);
  return s;
}

data::SamplerOptions sampler_options(const TrainingState& s) {
  if (!(s.config.dataset.rtg_scale > 0)) {
    throw ConfigError("dataset.rtg_scale must be resolved to a positive number before training");
  }
  data::SamplerOptions o;
  o.batch_size = s.config.training.batch_size;
  o.context_length = s.config.model.context_length;
  o.seed = s.config.seed;
  o.paper_padding = s.config.model.padding == "paper";
  o.rtg_scale = s.config.dataset.rtg_scale;
  o.state_mean = s.state_mean;
  o.state_std = s.state_std;
  o.max_timestep = s.config.model.max_timestep;
  return o;
}

void check_model_fits(const model::DMamba& model, const TrainingState& s,
                      const data::TrajectoryStore& store) {
  if (model->state_dim() != s.state_dim || model->act_dim() != s.act_dim) {
    throw ConfigError(store.name() + ": states have " + std::to_string(s.state_dim) +
                      " components and actions " + std::to_string(s.act_dim) +
                      ", but the model was made for " + std::to_string(model->state_dim()) +
                      " and " + std::to_string(model->act_dim()));
  }
}

/// Whether a run may be continued with another value of this key: what only says when something is
/// written or measured. `threads` and `device` may change the bits as another machine may. Without
/// a cosine, nothing that was done depends on how many steps were to come.
bool may_differ(const std::string& key, const config::Config& config) {
  static const std::set<std::string> kFree{"name",
                                           "dataset.environment",
                                           "dataset.max_episode_length",
                                           "training.log_every",
                                           "training.checkpoint_every",
                                           "training.keep_checkpoints",
                                           "training.threads",
                                           "training.device"};
  if (key == "training.steps") return config.training.schedule == "constant";
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
  if (saved.state_dim != mine.state_dim || saved.act_dim != mine.act_dim ||
      saved.state_mean != mine.state_mean || saved.state_std != mine.state_std) {
    throw CheckpointError(folder.string() + ": was written with other data than " + dataset +
                          " (dataset.path): sizes, mean or deviation of the states differ");
  }
}

torch::Device device_of(const config::TrainingConfig& training) {
  const torch::Device device = resolve_device(training.device, "training.device");
  check_precision(training.precision, device);
  return device;
}

/// The model on the device: its parameters are the same tensors, so the caller's model moves too.
const model::DMambaImpl& moved(model::DMamba& model, torch::Device device) {
  if (model->device() != device) model->to(device);
  return *model;
}

}  // namespace

Trainer::Trainer(const config::Config& config, std::shared_ptr<const data::TrajectoryStore> store,
                 model::DMamba model)
    : state_(initial_state(config, *store)),
      device_(device_of(config.training)),
      model_(std::move(model)),
      batches_(data::SegmentSampler(store, sampler_options(state_)), device_),
      optimizer_(moved(model_, device_), config.training) {
  check_model_fits(model_, state_, *store);
  if (config.training.threads > 0) at::set_num_threads(static_cast<int>(config.training.threads));
  keep_freed_memory();
  const auto sums = torch::TensorOptions().dtype(torch::kDouble).device(device_);
  loss_sum_ = torch::zeros({}, sums);
  norm_sum_ = torch::zeros({}, sums);
}

/// Mean squared error over the actions of unpadded timesteps.
Tensor Trainer::batch_loss(const Batch& batch) {
  const Autocast autocast(device_.type(), state_.config.training.precision == "bf16");
  const Tensor predicted = model_->forward(batch.states, batch.actions, batch.returns_to_go,
                                           batch.timesteps, batch.mask);
  const Tensor weight = batch.mask.to(torch::kFloat).unsqueeze(2);
  return ((predicted - batch.actions).square() * weight).sum() /
         (weight.sum() * static_cast<double>(state_.act_dim));
}

void Trainer::train_step() {
  const Tensor loss = batch_loss(batches_.load(state_.step));
  loss.backward();
  const Tensor norm = optimizer_.step(learning_rate(state_.config.training, state_.step));
  loss_sum_ += loss.detach();
  norm_sum_ += norm;
  ++state_.steps_summed;
  ++state_.step;
}

/// Reads the running sums off the device. They go on from there: summing in two pieces would round
/// otherwise than an uninterrupted run.
void Trainer::read_sums() {
  state_.loss_sum = loss_sum_.item<double>();
  state_.gradient_norm_sum = norm_sum_.item<double>();
}

MetricsRow Trainer::take_row() {
  read_sums();
  const double n = static_cast<double>(state_.steps_summed);
  const MetricsRow row{state_.step, state_.loss_sum / n, state_.gradient_norm_sum / n,
                       learning_rate(state_.config.training, state_.step - 1)};
  loss_sum_.zero_();
  norm_sum_.zero_();
  state_.steps_summed = 0;
  if (!std::isfinite(row.loss)) {
    throw Error("the loss is not finite at step " + std::to_string(row.step) + " (seed " +
                std::to_string(state_.config.seed) +
                "): lower training.learning_rate or training.gradient_clip, and continue from the "
                "last checkpoint");
  }
  return row;
}

std::vector<MetricsRow> Trainer::run(double seconds, int64_t max_steps) {
  using Clock = std::chrono::steady_clock;
  const auto end = Clock::now() + std::chrono::duration<double>(seconds);
  const int64_t steps = state_.config.training.steps;
  const int64_t last = max_steps < 0 ? steps : std::min(steps, state_.step + max_steps);
  std::vector<MetricsRow> rows;
  const c10::DeviceGuard current_device(device_);
  std::optional<Tf32Products> products;
  if (device_.is_cuda()) products.emplace(state_.config.training.precision == "tf32");
  // A region of the caller's would also cast the backward pass.
  const Autocast no_autocast(device_.type(), false);
  GeneratorGuard generator;
  model_->train();
  while (state_.step < last) {
    generator.seed_step(state_.config.seed, state_.step);
    train_step();
    if (state_.step % state_.config.training.log_every == 0 || finished()) {
      rows.push_back(take_row());
    }
    if (Clock::now() >= end) break;
  }
  return rows;
}

void Trainer::save(const std::filesystem::path& folder) {
  read_sums();
  save_checkpoint(folder, state_, *model_, optimizer_);
}

void Trainer::load(const std::filesystem::path& folder) {
  const TrainingState saved = read_training_state(folder);
  check_same_run(folder, saved, state_, batches_.sampler().store().name());
  load_parameters(folder, *model_);
  load_optimizer(folder, optimizer_, saved.step);
  state_.step = saved.step;
  loss_sum_.fill_(saved.loss_sum);
  norm_sum_.fill_(saved.gradient_norm_sum);
  state_.steps_summed = saved.steps_summed;
}

}  // namespace dmamba::train
