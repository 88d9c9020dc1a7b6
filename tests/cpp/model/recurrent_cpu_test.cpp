// The recurrent step without torch's operators, against DMambaImpl::step in double precision.
#include "src/model/recurrent_cpu.h"

#include <gtest/gtest.h>

#include "dmamba/ops/ops.h"
#include "tests/cpp/model/test_support.h"

namespace dmamba::model {
namespace {

using kernels::Storage;
using testing::waves;
using torch::Tensor;

constexpr int64_t kStateDim = 5, kActDim = 3, kSteps = 14;

struct Sizes {
  int64_t d_model = 36, d_state = 16, n_layer = 2, batch = 2;
  const char* channel_mixing = "mlp";
  int64_t d_conv = 4, expand = 2;
};

config::ModelConfig make_config(const Sizes& sizes) {
  config::ModelConfig config;
  config.d_model = sizes.d_model;
  config.d_state = sizes.d_state;
  config.n_layer = sizes.n_layer;
  config.channel_mixing = sizes.channel_mixing;
  config.d_conv = sizes.d_conv;
  config.expand = sizes.expand;
  config.max_timestep = 10;  // fewer than steps
  config.dropout = config.embedding_dropout = 0.0;
  return config;
}

/// A model whose norms, biases and D are not their neutral initial values.
DMamba make_model(const Sizes& sizes) {
  torch::manual_seed(11);
  DMamba model(kStateDim, kActDim, make_config(sizes));
  torch::NoGradGuard no_grad;
  for (auto& p : model->parameters()) p.add_(torch::randn_like(p), 0.05);
  model->eval();
  return model;
}

/// What the environments show at step t; the episodes of environment i have 3 + i steps, so that
/// they end at different times, or 13, so that the last row of the timestep table is passed.
struct Step {
  Step(int64_t t, int64_t batch)
      : states(waves({batch, kStateDim}, 0.7 * static_cast<double>(t))),
        rtg(waves({batch, 1}, 0.3 * static_cast<double>(t))),
        actions(waves({batch, kActDim}, 1.1 * static_cast<double>(t)) * 0.9),
        timesteps(torch::empty({batch}, torch::kLong)) {
    for (int64_t i = 0; i < batch; ++i) timesteps[i] = i == 1 ? t % 13 : t % (3 + i);
    first = timesteps == 0;
  }
  Tensor states, rtg, actions, timesteps, first;
};

std::vector<Tensor> expected_actions(const DMamba& model, const Sizes& sizes) {
  DMamba exact(kStateDim, kActDim, make_config(sizes));
  exact->to(torch::kDouble);
  torch::NoGradGuard no_grad;
  const auto from = model->parameters(), to = exact->parameters();
  for (size_t i = 0; i < to.size(); ++i) Tensor(to[i]).copy_(from[i]);
  exact->eval();
  RecurrentState state = exact->initial_state(sizes.batch);
  Tensor done = torch::zeros({sizes.batch, kActDim}, torch::kDouble);
  std::vector<Tensor> actions;
  for (int64_t t = 0; t < kSteps; ++t) {
    const Step step(t, sizes.batch);
    actions.push_back(
        exact->step({done, step.rtg.to(torch::kDouble), step.states.to(torch::kDouble),
                     step.timesteps.clamp_max(make_config(sizes).max_timestep - 1), step.first},
                    state));
    done = step.actions.to(torch::kDouble);
  }
  return actions;
}

std::vector<Tensor> engine_actions(RecurrentCpu& engine, int64_t batch) {
  std::vector<Tensor> actions;
  for (int64_t t = 0; t < kSteps; ++t) {
    const Step step(t, batch);
    actions.push_back(engine.act(step.rtg, step.states, step.timesteps, step.first));
    engine.follow(step.actions, step.timesteps);
  }
  return actions;
}

double relative_error(const std::vector<Tensor>& got, const std::vector<Tensor>& expected) {
  const Tensor exact = torch::stack(expected);
  return ((torch::stack(got) - exact).abs().max() / exact.abs().max()).item<double>();
}

class RecurrentCpuSizes : public ::testing::TestWithParam<Sizes> {};

TEST_P(RecurrentCpuSizes, AgreesWithTheModelsStepInDoublePrecision) {
  const Sizes sizes = GetParam();
  DMamba model = make_model(sizes);
  const auto expected = expected_actions(model, sizes);
  const std::string best = ops::cpu_capability();
  for (const std::string& capability : ops::cpu_capabilities()) {
    ops::set_cpu_capability(capability);
    RecurrentCpu exact(model, sizes.batch, Storage::kFloat32);
    EXPECT_LE(relative_error(engine_actions(exact, sizes.batch), expected), 1e-5) << capability;
    RecurrentCpu rounded(model, sizes.batch, Storage::kBFloat16);
    const double error = relative_error(engine_actions(rounded, sizes.batch), expected);
    EXPECT_LE(error, 2e-2) << capability;
    EXPECT_GT(error, 1e-4) << capability << ": bfloat16 was not used";
  }
  ops::set_cpu_capability(best);
}

INSTANTIATE_TEST_SUITE_P(
    Model, RecurrentCpuSizes,
    ::testing::Values(Sizes{}, Sizes{.batch = 1}, Sizes{.batch = 5}, Sizes{.batch = 19},
                      Sizes{.d_state = 8, .n_layer = 1}, Sizes{.channel_mixing = "none"},
                      Sizes{.n_layer = 3, .batch = 5}, Sizes{.d_model = 31, .expand = 1},
                      Sizes{.d_model = 16, .d_conv = 1}, Sizes{.d_model = 20, .d_conv = 3},
                      Sizes{.d_model = 128, .n_layer = 3, .batch = 1}));

TEST(RecurrentCpu, ThreadsAndCompanyDoNotChangeBits) {
  DMamba model = make_model({});
  const int threads = at::get_num_threads();
  std::vector<Tensor> actions[2];
  for (const int n : {1, 2}) {
    at::set_num_threads(n);
    RecurrentCpu engine(model, 35, Storage::kFloat32);
    actions[n - 1] = engine_actions(engine, 35);
  }
  at::set_num_threads(threads);
  EXPECT_TRUE(torch::equal(torch::stack(actions[0]), torch::stack(actions[1])));
  RecurrentCpu few(model, 3, Storage::kFloat32);
  const Step many_first(0, 35);
  const Tensor together = actions[0][0].slice(0, 0, 3);
  EXPECT_TRUE(
      torch::equal(few.act(many_first.rtg.slice(0, 0, 3), many_first.states.slice(0, 0, 3),
                           many_first.timesteps.slice(0, 0, 3), many_first.first.slice(0, 0, 3)),
                   together));
}

TEST(RecurrentCpu, SeesChangesOfTheParameters) {
  DMamba model = make_model({});
  RecurrentCpu engine(model, 2, Storage::kFloat32);
  const auto before = engine_actions(engine, 2);
  torch::NoGradGuard no_grad;
  for (auto& p : model->parameters()) p.mul_(1.1);
  const auto after = engine_actions(engine, 2);
  EXPECT_GT(relative_error(after, before), 1e-3);
  EXPECT_LE(relative_error(after, expected_actions(model, {})), 1e-5);
  model->to(torch::kDouble);
  EXPECT_FALSE(RecurrentCpu::supports(*model));
  for (int i = 0; i < 2; ++i) EXPECT_THROW(engine_actions(engine, 2), c10::Error);
}

}  // namespace
}  // namespace dmamba::model
