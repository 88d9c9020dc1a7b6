// What the training tests share: a small learnable dataset, a small run, a folder of their own.
#pragma once

#include <gtest/gtest.h>
#include <torch/torch.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include "dmamba/common/error.h"
#include "dmamba/train/trainer.h"
#include "tests/cpp/messages.h"

namespace dmamba::train::testing {

using messages::expect_contains;
using messages::message_of;

/// A folder of its own for each test, removed afterwards.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "dmamba-XXXXXX").string();
    if (mkdtemp(pattern.data()) == nullptr) {
      throw std::runtime_error("no temporary folder " + pattern);
    }
    path_ = pattern;
  }
  ~TemporaryFolder() { std::filesystem::remove_all(path_); }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};

/// Six episodes of 20 steps; the action is a function of the state.
inline std::shared_ptr<data::MemoryStore> make_store(int64_t state_dim = 3, int64_t act_dim = 2,
                                                     double frequency = 0.7) {
  data::TransitionArrays arrays;
  arrays.state_dim = state_dim;
  arrays.act_dim = act_dim;
  for (int64_t row = 0; row < 120; ++row) {
    for (int64_t i = 0; i < state_dim; ++i) {
      arrays.observations.push_back(
          static_cast<float>(std::sin(frequency * (row * state_dim + i))));
    }
    const float state = arrays.observations[static_cast<size_t>(row * state_dim)];
    for (int64_t i = 0; i < act_dim; ++i) {
      arrays.actions.push_back((i % 2 == 0 ? 0.8f : -0.5f) * state);
    }
    arrays.rewards.push_back(1.0f);
    arrays.terminals.push_back(0);
    arrays.timeouts.push_back((row + 1) % 20 == 0);
  }
  return data::MemoryStore::create(std::move(arrays), "waves");
}

/// Dropout on, a metrics row every 5 steps; on the CPU, whatever the machine has.
inline config::Config small_run() {
  config::Config config;
  config.seed = 11;
  config.dataset.rtg_scale = 10.0;
  config.model.d_model = 16;
  config.model.n_layer = 1;
  config.model.d_state = 4;
  config.model.context_length = 5;
  config.model.max_timestep = 30;
  config.training.steps = 13;
  config.training.batch_size = 8;
  config.training.warmup_steps = 3;
  config.training.log_every = 5;
  config.training.device = "cpu";
  return config;
}

inline model::DMamba make_model(const config::Config& config, uint64_t seed = 1) {
  torch::manual_seed(seed);
  return model::DMamba(3, 2, config.model);
}

inline std::string read(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

inline void write(const std::filesystem::path& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

inline bool same_parameters(const torch::nn::Module& a, const torch::nn::Module& b) {
  const auto left = a.named_parameters(), right = b.named_parameters();
  bool same = left.size() == right.size();
  for (const auto& item : left) same = same && torch::equal(item.value(), right[item.key()]);
  return same;
}

}  // namespace dmamba::train::testing
