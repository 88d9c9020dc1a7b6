// Continuous control: standardised states, real-valued actions.
#include <torch/torch.h>

#include <algorithm>

#include "dmamba/common/error.h"
#include "dmamba/common/philox.h"
#include "dmamba/data/segment_sampler.h"
#include "src/train/kept_generators.h"
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

/// Segments of one length, and the memory of a batch of them.
struct Context {
  Context(data::SegmentSampler drawn, torch::Device device, int64_t rows, bool staged)
      : sampler(std::move(drawn)), batch(parts_of(sampler, rows), device, staged) {}

  data::SegmentSampler sampler;
  StagedBatch batch;
};

/// With several lengths K the one of a step follows from (seed, step), each that is chosen as
/// likely as any other; segments begin where those of any other K would.
template <class Model>
class TrajectoryTask : public Task {
 public:
  TrajectoryTask(const config::Config& config, std::shared_ptr<const data::TrajectoryStore> store,
                 Model model, torch::Device device, Share share,
                 const std::optional<data::StateStatistics>& statistics)
      : model_(std::move(model)),
        store_(std::move(store)),
        random_{config.seed},
        share_(share),
        resident_(
            keep_on_device(config.training, store_->name(), resident_bytes(*store_), device)) {
    data::SamplerOptions options = sampler_options(config, *store_, statistics);
    std::vector<int64_t> lengths = config.training.contexts;
    if (config.training.context == "fixed") lengths = {config.model.context_length};
    for (const int64_t length : lengths) {
      options.context_length = length;
      chosen_.push_back(static_cast<int64_t>(contexts_.size()));
      contexts_.push_back(std::make_unique<Context>(data::SegmentSampler(store_, options), device,
                                                    share.count, !resident_));
    }
    if (resident_) recording_ = on_device(contexts_.back()->sampler, device);
    if (model_->device() != device) model_->to(device);
  }

  torch::nn::Module& model() override { return *model_; }
  const data::EpisodeStore& store() const override { return *store_; }

  void describe(TrainingState& state) const override {
    const data::SegmentSampler& sampler = contexts_.back()->sampler;
    state.state_dim = sampler.store().state_dim();
    state.act_dim = sampler.store().act_dim();
    state.state_mean = sampler.options().state_mean;
    state.state_std = sampler.options().state_std;
  }

  void load(int64_t step) override {
    current_ = contexts_[static_cast<size_t>(graph_of(step))].get();
    if (resident_) return;
    current_->batch.stage([&](const StagedBatch::Tensors& t) {
      current_->sampler.sample_range(
          static_cast<uint64_t>(step), share_.first, share_.count,
          {t[0].mutable_data_ptr<float>(), t[1].mutable_data_ptr<float>(),
           t[2].mutable_data_ptr<float>(), t[3].mutable_data_ptr<int64_t>(),
           t[4].mutable_data_ptr<bool>()});
    });
  }

  void begin_step(const cuda_only::BeginStep& options, const cuda_only::StepState& state) override {
    const auto& t = current_->batch.tensors();
    cuda_only::begin_step(options, state, resident_ ? &recording_ : nullptr,
                          {t[0], t[1], t[2], t[3], t[4]});
  }

  std::string describe_batch(int64_t step) const override {
    const data::SegmentSampler& sampler = contexts_[static_cast<size_t>(graph_of(step))]->sampler;
    return describe_segments(sampler.store().name(), sampler.options().batch_size, [&](int64_t i) {
      return sampler.segment(static_cast<uint64_t>(step), i);
    });
  }

  Tensor loss() override {
    const auto& t = current_->batch.tensors();
    return model_->loss(t[0], t[1], t[2], t[3], t[4]);
  }

  Tensor real_steps() override { return current_->batch.tensors()[4].sum(at::kFloat); }

  bool resident() const override { return resident_; }

  int64_t graphs() const override { return static_cast<int64_t>(contexts_.size()); }

  int64_t graph_of(int64_t step) const override {
    const common::PhiloxBlock draw =
        random_(static_cast<uint64_t>(step), 0, common::PhiloxPurpose::kContext);
    return chosen_[static_cast<size_t>(common::bounded(draw.bits64(0), chosen_.size()))];
  }

  void choose_contexts(const std::vector<int64_t>& lengths) override {
    std::vector<int64_t> chosen;
    for (const int64_t length : lengths) {
      const auto found = std::find_if(contexts_.begin(), contexts_.end(), [&](const auto& context) {
        return context->sampler.options().context_length == length;
      });
      if (found == contexts_.end()) {
        throw ConfigError("a context length of " + std::to_string(length) +
                          " is not among training.contexts");
      }
      chosen.push_back(found - contexts_.begin());
    }
    if (chosen.empty()) throw ConfigError("no context length is chosen: give at least one");
    chosen_ = std::move(chosen);
  }

 protected:
  Model model_;
  std::shared_ptr<const data::TrajectoryStore> store_;
  common::Philox random_;
  Share share_;

 private:
  bool resident_;
  std::vector<std::unique_ptr<Context>> contexts_;  // by rising K
  std::vector<int64_t> chosen_;                     // of these, what steps draw from
  Context* current_ = nullptr;                      // of the step whose batch is loaded
  cuda_only::TrajectoryTensors recording_;
};

/// Each rank draws numbers of its own.
class ExternalTask final : public TrajectoryTask<model::ExternalModel> {
 public:
  using TrajectoryTask::TrajectoryTask;

  void describe(TrainingState& state) const override {
    TrajectoryTask::describe(state);
    state.external_model = model_->class_name();
  }

  void load(int64_t step) override {
    TrajectoryTask::load(step);
    constexpr uint32_t kFirst = uint32_t{1} << 31;  // no dropout of the library's has that index
    seed_generators(model_->device(),
                    common::dropout_key(random_.seed, static_cast<uint64_t>(step),
                                        kFirst + static_cast<uint32_t>(share_.first)));
  }

  bool external() const override { return true; }
};

template <class Model>
void check_sizes(const data::TrajectoryStore& store, const Model& model) {
  if (model->state_dim() == store.state_dim() && model->act_dim() == store.act_dim()) return;
  throw ConfigError(store.name() + ": states have " + std::to_string(store.state_dim()) +
                    " components and actions " + std::to_string(store.act_dim()) +
                    ", but the model was made for " + std::to_string(model->state_dim()) + " and " +
                    std::to_string(model->act_dim()));
}

}  // namespace

std::unique_ptr<Task> make_task(const config::Config& config,
                                std::shared_ptr<const data::TrajectoryStore> store,
                                model::DMamba model, torch::Device device, Share share,
                                const std::optional<data::StateStatistics>& statistics) {
  check_sizes(*store, model);
  return std::make_unique<TrajectoryTask<model::DMamba>>(config, std::move(store), std::move(model),
                                                         device, share, statistics);
}

std::unique_ptr<Task> make_task(const config::Config& config,
                                std::shared_ptr<const data::TrajectoryStore> store,
                                model::ExternalModel model, torch::Device device, Share share,
                                const std::optional<data::StateStatistics>& statistics) {
  check_sizes(*store, model);
  return std::make_unique<ExternalTask>(config, std::move(store), std::move(model), device, share,
                                        statistics);
}

}  // namespace dmamba::train
