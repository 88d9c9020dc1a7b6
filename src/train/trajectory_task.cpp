// Continuous control: standardised states, real-valued actions.
#include <torch/torch.h>

#include "dmamba/common/error.h"
#include "dmamba/data/segment_sampler.h"
#include "src/train/staged_batch.h"
#include "src/train/task.h"

namespace dmamba::train {
namespace {

using torch::Tensor;
namespace cuda_only = ops::cuda_only;

data::SamplerOptions sampler_options(const config::Config& config,
                                     const data::TrajectoryStore& store,
                                     const std::optional<data::StateStatistics>& given) {
  check_scale(config);
  data::SamplerOptions o;
  o.batch_size = config.training.batch_size;
  o.context_length = config.model.context_length;
  o.seed = config.seed;
  o.paper_padding = config.model.padding == "paper";
  o.rtg_scale = config.dataset.rtg_scale;
  data::StateStatistics statistics = given ? *given : data::state_statistics(store);
  o.state_mean = std::move(statistics.mean);
  o.state_std = std::move(statistics.std);
  o.max_timestep = config.model.max_timestep;
  return o;
}

/// States, actions, returns-to-go, timesteps, mask; shapes as data::BatchView.
std::vector<StagedBatch::Part> parts_of(const data::SegmentSampler& sampler, int64_t batch) {
  const int64_t K = sampler.options().context_length;
  return {{{batch, K, sampler.store().state_dim()}, at::kFloat},
          {{batch, K, sampler.store().act_dim()}, at::kFloat},
          {{batch, K, 1}, at::kFloat},
          {{batch, K}, at::kLong},
          {{batch, K}, at::kBool}};
}

int64_t resident_bytes(const data::TrajectoryStore& store) {
  const int64_t row = 4 * (store.state_dim() + store.act_dim() + 1);
  return store.num_transitions() * row + 8 * store.num_episodes();
}

/// The whole recording as batches hold it.
cuda_only::TrajectoryTensors on_device(const data::SegmentSampler& sampler, torch::Device device) {
  const data::TrajectoryStore& store = sampler.store();
  const int64_t count = store.num_transitions(), episodes = store.num_episodes();
  const Tensor states = torch::empty({count, store.state_dim()});
  const Tensor actions = torch::empty({count, store.act_dim()});
  const Tensor returns = torch::empty({count}), starts = torch::empty({episodes + 1}, at::kLong);
  sampler.read_all(states.mutable_data_ptr<float>(), actions.mutable_data_ptr<float>(),
                   returns.mutable_data_ptr<float>());
  for (int64_t i = 0; i < episodes; ++i) {
    starts.mutable_data_ptr<int64_t>()[i] = store.episode(i).start;
  }
  starts.mutable_data_ptr<int64_t>()[episodes] = count;
  const std::vector<float>& padding = sampler.padding_state();
  const Tensor padding_state = torch::tensor(at::ArrayRef<float>(padding), torch::kFloat);
  return {states.to(device), actions.to(device),       returns.to(device),
          starts.to(device), padding_state.to(device), sampler.padding_action()};
}

class TrajectoryTask final : public Task {
 public:
  TrajectoryTask(const config::Config& config, std::shared_ptr<const data::TrajectoryStore> store,
                 model::DMamba model, torch::Device device, Share share,
                 const std::optional<data::StateStatistics>& statistics)
      : model_(std::move(model)),
        sampler_(store, sampler_options(config, *store, statistics)),
        share_(share),
        resident_(keep_on_device(config.training, store->name(), resident_bytes(*store), device)),
        batch_(parts_of(sampler_, share.count), device, !resident_) {
    if (resident_) recording_ = on_device(sampler_, device);
    if (model_->device() != device) model_->to(device);
  }

  torch::nn::Module& model() override { return *model_; }
  const data::EpisodeStore& store() const override { return sampler_.store(); }

  void describe(TrainingState& state) const override {
    state.state_dim = sampler_.store().state_dim();
    state.act_dim = sampler_.store().act_dim();
    state.state_mean = sampler_.options().state_mean;
    state.state_std = sampler_.options().state_std;
  }

  void load(int64_t step) override {
    if (resident_) return;
    batch_.stage([&](const StagedBatch::Tensors& t) {
      sampler_.sample_range(static_cast<uint64_t>(step), share_.first, share_.count,
                            {t[0].mutable_data_ptr<float>(), t[1].mutable_data_ptr<float>(),
                             t[2].mutable_data_ptr<float>(), t[3].mutable_data_ptr<int64_t>(),
                             t[4].mutable_data_ptr<bool>()});
    });
  }

  void begin_step(const cuda_only::BeginStep& options, const cuda_only::StepState& state) override {
    const auto& t = batch_.tensors();
    cuda_only::begin_step(options, state, resident_ ? &recording_ : nullptr,
                          {t[0], t[1], t[2], t[3], t[4]});
  }

  Tensor loss() override {
    const auto& t = batch_.tensors();
    return model_->loss(t[0], t[1], t[2], t[3], t[4]);
  }

  Tensor real_steps() override { return batch_.tensors()[4].sum(at::kFloat); }

  bool resident() const override { return resident_; }

 private:
  model::DMamba model_;
  data::SegmentSampler sampler_;
  Share share_;
  bool resident_;
  StagedBatch batch_;
  cuda_only::TrajectoryTensors recording_;
};

}  // namespace

std::unique_ptr<Task> make_task(const config::Config& config,
                                std::shared_ptr<const data::TrajectoryStore> store,
                                model::DMamba model, torch::Device device, Share share,
                                const std::optional<data::StateStatistics>& statistics) {
  if (model->state_dim() != store->state_dim() || model->act_dim() != store->act_dim()) {
    throw ConfigError(store->name() + ": states have " + std::to_string(store->state_dim()) +
                      " components and actions " + std::to_string(store->act_dim()) +
                      ", but the model was made for " + std::to_string(model->state_dim()) +
                      " and " + std::to_string(model->act_dim()));
  }
  return std::make_unique<TrajectoryTask>(config, std::move(store), std::move(model), device, share,
                                          statistics);
}

}  // namespace dmamba::train
