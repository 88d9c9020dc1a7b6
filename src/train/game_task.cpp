// Games: frames in, discrete actions out. Frames travel and wait as bytes.
#include <ATen/Parallel.h>
#include <torch/torch.h>

#include "dmamba/common/error.h"
#include "dmamba/data/frame_sampler.h"
#include "src/train/staged_batch.h"
#include "src/train/task.h"

namespace dmamba::train {
namespace {

using torch::Tensor;
namespace cuda_only = ops::cuda_only;

data::FrameSamplerOptions sampler_options(const config::Config& config) {
  check_scale(config);
  return {config.training.batch_size, config.model.context_length, config.seed,
          config.dataset.rtg_scale, config.model.max_timestep};
}

/// Strips, actions, returns-to-go, timesteps, mask; shapes as data::FrameBatchView.
std::vector<StagedBatch::Part> parts_of(const data::FrameSamplerOptions& o, int64_t batch) {
  const int64_t K = o.context_length;
  return {{{batch, K + data::kFrameStack - 1, data::kFrameSide, data::kFrameSide}, at::kByte},
          {{batch, K}, at::kLong},
          {{batch, K, 1}, at::kFloat},
          {{batch}, at::kLong},
          {{batch, K}, at::kBool}};
}

int64_t resident_bytes(const data::FrameStore& store) {
  return store.num_transitions() * (data::kFrameBytes + 8) + 8 * store.num_episodes();
}

int64_t shortest_episode(const data::FrameStore& store) {
  int64_t shortest = store.num_transitions();
  for (int64_t i = 0; i < store.num_episodes(); ++i) {
    shortest = std::min(shortest, store.episode(i).length);
  }
  return shortest;
}

/// A tensor over memory of the store's.
template <class T>
Tensor view(std::span<const T> values, at::IntArrayRef sizes) {
  return torch::from_blob(const_cast<T*>(values.data()), sizes, c10::CppTypeToScalarType<T>::value);
}

cuda_only::GameTensors on_device(const data::FrameStore& store, double rtg_scale,
                                 torch::Device device) {
  const int64_t count = store.num_transitions(), episodes = store.num_episodes();
  const Tensor starts = torch::zeros({episodes + 1}, at::kLong);
  starts.slice(0, 1).copy_(view(store.episode_ends(), {episodes}));
  return {
      view(store.frames(), {count, data::kFrameSide, data::kFrameSide}).to(device),
      view(store.actions(), {count}).to(device),
      (view(store.returns_to_go(), {count}).to(at::kDouble) / rtg_scale).to(at::kFloat).to(device),
      starts.to(device)};
}

/// FNV-1a, of what a batch is drawn from beside the frames.
class Digest {
 public:
  template <class T>
  void add(std::span<const T> values) {
    const auto* bytes = reinterpret_cast<const unsigned char*>(values.data());
    for (size_t i = 0; i < values.size_bytes(); ++i) {
      value_ = (value_ ^ bytes[i]) * 0x100000001B3ULL;
    }
  }
  std::string text() const {
    char digits[17];
    std::snprintf(digits, sizeof(digits), "%016llx", static_cast<unsigned long long>(value_));
    return digits;
  }

 private:
  uint64_t value_ = 0xCBF29CE484222325ULL;
};

class GameTask final : public Task {
 public:
  GameTask(const config::Config& config, std::shared_ptr<const data::FrameStore> store,
           model::AtariDMamba model, torch::Device device, Share share)
      : model_(std::move(model)),
        sampler_(std::move(store), sampler_options(config)),
        share_(share),
        has_padding_(shortest_episode(sampler_.store()) < config.model.context_length),
        resident_(keep_on_device(config.training, sampler_.store().name(),
                                 resident_bytes(sampler_.store()), device)),
        batch_(parts_of(sampler_.options(), share.count), device, !resident_) {
    if (resident_) recording_ = on_device(sampler_.store(), config.dataset.rtg_scale, device);
    if (model_->device() != device) model_->to(device);
  }

  torch::nn::Module& model() override { return *model_; }
  const data::EpisodeStore& store() const override { return sampler_.store(); }

  void describe(TrainingState& state) const override {
    const data::FrameStore& store = sampler_.store();
    state.num_actions = model_->num_actions();
    Digest digest;
    digest.add(store.actions());
    digest.add(store.rewards());
    digest.add(store.episode_ends());
    state.data_digest = digest.text();
  }

  void load(int64_t step) override {
    if (resident_) return;
    batch_.stage([&](const StagedBatch::Tensors& t) {
      const data::FrameBatchView view{
          t[0].mutable_data_ptr<uint8_t>(), t[1].mutable_data_ptr<int64_t>(),
          t[2].mutable_data_ptr<float>(), t[3].mutable_data_ptr<int64_t>(),
          t[4].mutable_data_ptr<bool>()};
      at::parallel_for(0, share_.count, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
          sampler_.sample_row(static_cast<uint64_t>(step), share_.first + i, i, view);
      });
    });
  }

  void begin_step(const cuda_only::BeginStep& options, const cuda_only::StepState& state) override {
    cuda_only::begin_step(options, state, nullptr, {});
    if (!resident_) return;
    const auto& t = batch_.tensors();
    cuda_only::draw_strips(options, state, recording_, {t[0], t[1], t[2], t[3], t[4]});
  }

  std::string describe_batch(int64_t step) const override {
    return describe_segments(
        sampler_.store().name(), sampler_.options().batch_size,
        [&](int64_t i) { return sampler_.segment(static_cast<uint64_t>(step), i); });
  }

  Tensor loss() override {
    const auto& t = batch_.tensors();
    return model_->loss(t[0], t[1], t[2], t[3], has_padding_ ? t[4] : Tensor());
  }

  Tensor real_steps() override { return batch_.tensors()[4].sum(at::kFloat); }

  bool resident() const override { return resident_; }

 private:
  model::AtariDMamba model_;
  data::FrameSampler sampler_;
  Share share_;
  bool has_padding_;  // whether a segment can be shorter than K: without, no flag is looked at
  bool resident_;
  StagedBatch batch_;
  cuda_only::GameTensors recording_;
};

}  // namespace

std::unique_ptr<Task> make_task(const config::Config& config,
                                std::shared_ptr<const data::FrameStore> store,
                                model::AtariDMamba model, torch::Device device, Share share) {
  if (config.training.context != "fixed") {
    throw ConfigError("training.context: " + config.training.context + ", but " + store->name() +
                      " is a recorded game; choose fixed");
  }
  if (store->num_actions() > model->num_actions()) {
    throw ConfigError(store->name() + ": has actions up to " +
                      std::to_string(store->num_actions() - 1) + ", but the model was made for " +
                      std::to_string(model->num_actions()) + " actions");
  }
  if (!(config.model == model->config())) {
    throw ConfigError(
        "the model was made with other settings than the configuration's section "
        "model; make it with AtariDMamba(num_actions, config.model)");
  }
  return std::make_unique<GameTask>(config, std::move(store), std::move(model), device, share);
}

}  // namespace dmamba::train
