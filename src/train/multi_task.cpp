// Several sets at once: each step trains on one of them, drawn in proportion to
//
//   transitions^(1 / temperature)
//
// as multilingual models sample their languages (Conneau et al., arXiv 1911.02116, with alpha =
// 1 / temperature): 1 is in proportion to size, a high temperature evens the sets out. The draw is
// keyed by (seed, step), so that a resumed run goes on with the same sets.
#include <algorithm>
#include <cmath>

#include "dmamba/common/error.h"
#include "dmamba/common/philox.h"
#include "src/train/task.h"

namespace dmamba::train {
namespace {

using Stores = std::vector<std::shared_ptr<const data::TrajectoryStore>>;

/// The config of one set's task.
config::Config config_of(const config::Config& config, size_t set) {
  config::Config own = config;
  own.dataset.rtg_scale = config.pretraining.rtg_scales[set];
  return own;
}

/// The share of the sets up to each one.
std::vector<double> cumulative_shares(const Stores& stores, double temperature) {
  std::vector<double> sums;
  double sum = 0.0;
  // In proportion to the largest: no power overflows.
  int64_t largest = 0;
  for (const auto& store : stores) largest = std::max(largest, store->num_transitions());
  for (const auto& store : stores) {
    sum += std::pow(static_cast<double>(store->num_transitions()) / static_cast<double>(largest),
                    1.0 / temperature);
    sums.push_back(sum);
  }
  for (double& share : sums) share /= sum;
  return sums;
}

class MultiTask final : public Task {
 public:
  MultiTask(const config::Config& config, const Stores& stores, model::MultiDMamba model,
            torch::Device device)
      : model_(std::move(model)),
        random_{config.seed},
        shares_(cumulative_shares(stores, config.pretraining.temperature)) {
    for (size_t i = 0; i < stores.size(); ++i) {
      tasks_.push_back(make_task(config_of(config, i), stores[i], model_->models()[i], device,
                                 Share{0, config.training.batch_size}));
    }
  }

  torch::nn::Module& model() override { return *model_; }
  const data::EpisodeStore& store() const override { return tasks_[0]->store(); }

  void describe(TrainingState& state) const override {
    for (size_t i = 0; i < tasks_.size(); ++i) {
      TrainingState own;
      tasks_[i]->describe(own);
      state.sets.push_back({model_->names()[i], own.state_dim, own.act_dim,
                            std::move(own.state_mean), std::move(own.state_std), 0});
    }
  }

  void load(int64_t step) override {
    current_ = static_cast<size_t>(set_of(step));
    tasks_[current_]->load(step);
  }

  void begin_step(const ops::cuda_only::BeginStep& options,
                  const ops::cuda_only::StepState& state) override {
    tasks_[current_]->begin_step(options, state);
  }

  std::string describe_batch(int64_t step) const override {
    return tasks_[static_cast<size_t>(set_of(step))]->describe_batch(step);
  }

  torch::Tensor loss() override { return tasks_[current_]->loss(); }
  torch::Tensor real_steps() override { return tasks_[current_]->real_steps(); }

  bool resident() const override {
    return std::all_of(tasks_.begin(), tasks_.end(), [](const auto& t) { return t->resident(); });
  }

  int64_t sets() const override { return static_cast<int64_t>(tasks_.size()); }

  int64_t set_of(int64_t step) const override {
    const common::PhiloxBlock draw =
        random_(static_cast<uint64_t>(step), 0, common::PhiloxPurpose::kSet);
    const double u = static_cast<double>(draw.bits64(0) >> 11) * 0x1p-53;  // [0, 1)
    const auto last = shares_.end() - 1;  // whose share may have been rounded below 1
    return std::upper_bound(shares_.begin(), last, u) - shares_.begin();
  }

 private:
  model::MultiDMamba model_;
  common::Philox random_;
  std::vector<double> shares_;
  std::vector<std::unique_ptr<Task>> tasks_;
  size_t current_ = 0;
};

}  // namespace

std::unique_ptr<Task> make_task(const config::Config& config, const Stores& stores,
                                model::MultiDMamba model, torch::Device device) {
  const size_t sets = stores.size();
  if (model->models().size() != sets || config.pretraining.sets.size() != sets) {
    throw ConfigError("pretraining.sets names " + std::to_string(config.pretraining.sets.size()) +
                      " sets, but " + std::to_string(sets) + " stores and " +
                      std::to_string(model->models().size()) + " models were given");
  }
  if (config.pretraining.rtg_scales.size() != sets) {
    throw ConfigError("pretraining.rtg_scales must be resolved to one number a set");
  }
  return std::make_unique<MultiTask>(config, stores, std::move(model), device);
}

}  // namespace dmamba::train
