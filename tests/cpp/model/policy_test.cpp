// The two policies: equal while t < K, whatever the episodes of a batch do.
#include "dmamba/model/policy.h"

#include <gtest/gtest.h>

#include "dmamba/common/error.h"
#include "tests/cpp/model/test_support.h"

namespace dmamba::model {
namespace {

using testing::small_config;
using testing::waves;
using torch::Tensor;

constexpr int64_t kEnvs = 3;

DMamba make_model(const char* padding = "masked") {
  torch::manual_seed(7);
  config::ModelConfig config = small_config();
  config.padding = padding;
  config.dropout = config.embedding_dropout = 0.1;
  return DMamba(3, 2, config);
}

PolicyOptions options(const std::string& kind, int64_t num_envs = kEnvs) {
  return {kind, num_envs, 10.0, {0.5f, -0.5f, 1.0f}, {1.0f, 2.0f, 0.5f}};
}

/// Episode ends of the environments at step t, in both the old and the new loop the same.
Tensor ends_at(int64_t t, const std::vector<int64_t>& lengths) {
  Tensor ends = torch::zeros({static_cast<int64_t>(lengths.size())}, torch::kBool);
  for (size_t i = 0; i < lengths.size(); ++i) {
    if ((t + 1) % lengths[i] == 0) ends[static_cast<int64_t>(i)] = true;
  }
  return ends;
}

/// The actions of `steps` steps in made-up environments whose episodes have these lengths.
std::vector<Tensor> act(Policy& policy, int64_t steps, const std::vector<int64_t>& lengths,
                        const Tensor& rows) {
  const Tensor targets = torch::tensor({30.0, 20.0, 10.0}, torch::kDouble).index_select(0, rows);
  policy.reset(torch::ones({rows.size(0)}, torch::kBool), targets);
  std::vector<Tensor> actions;
  for (int64_t t = 0; t < steps; ++t) {
    const double phase = static_cast<double>(t);
    actions.push_back(policy.act(waves({kEnvs, 3}, phase).index_select(0, rows)));
    policy.observe(waves({kEnvs}, 2 * phase).index_select(0, rows));
    policy.reset(ends_at(t, lengths), targets * 0.9);
  }
  return actions;
}

std::vector<Tensor> act_all(const std::string& kind, DMamba model, int64_t steps,
                            const std::vector<int64_t>& lengths) {
  Policy policy(std::move(model), options(kind));
  return act(policy, steps, lengths, torch::arange(kEnvs));
}

double largest_difference(const std::vector<Tensor>& a, const std::vector<Tensor>& b) {
  return (torch::stack(a) - torch::stack(b)).abs().max().item<double>();
}

TEST(Policy, RecurrentEqualsWindowedWhileEpisodesFitTheWindow) {
  // K = 6; episodes of 6, 4 and 5 steps, restarting at different times.
  const std::vector<int64_t> lengths{6, 4, 5};
  const auto windowed = act_all("windowed", make_model(), 25, lengths);
  const auto recurrent = act_all("recurrent", make_model(), 25, lengths);
  EXPECT_LE(largest_difference(windowed, recurrent), 2e-6);
}

TEST(Policy, KindsPartOnlyWhenTheWindowForgets) {
  const std::vector<int64_t> endless{1000, 1000, 1000};
  const auto windowed = act_all("windowed", make_model(), 12, endless);
  const auto recurrent = act_all("recurrent", make_model(), 12, endless);
  const auto head = [](const std::vector<Tensor>& all) {
    return std::vector<Tensor>(all.begin(), all.begin() + 6);
  };
  EXPECT_LE(largest_difference(head(windowed), head(recurrent)), 2e-6);
  EXPECT_GT(largest_difference(windowed, recurrent), 1e-5);
}

TEST(Policy, PaperPaddingLeaksIntoTheWindow) {
  const std::vector<int64_t> lengths{6, 4, 5};
  EXPECT_GT(largest_difference(act_all("windowed", make_model("paper"), 3, lengths),
                               act_all("recurrent", make_model("paper"), 3, lengths)),
            1e-4);
}

TEST(Policy, EnvironmentsDoNotInfluenceEachOther) {
  const std::vector<int64_t> lengths{6, 4, 5};
  for (const char* kind : {"windowed", "recurrent"}) {
    const auto together = act_all(kind, make_model(), 15, lengths);
    for (int64_t i = 0; i < kEnvs; ++i) {
      Policy alone(make_model(), options(kind, 1));
      const auto actions = act(alone, 15, {lengths[static_cast<size_t>(i)]}, torch::tensor({i}));
      for (size_t t = 0; t < actions.size(); ++t) {
        EXPECT_LE((actions[t][0] - together[t][i]).abs().max().item<double>(), 2e-6)
            << kind << ", environment " << i << ", step " << t;
      }
    }
  }
}

TEST(Policy, WindowedFeedsTheModelWhatTrainingWould) {
  DMamba model = make_model();
  Policy policy(model, options("windowed", 1));
  policy.reset(torch::ones({1}, torch::kBool), torch::tensor({30.0}, torch::kDouble));
  std::vector<Tensor> states, actions, rtgs;
  const Tensor mean = torch::tensor({0.5, -0.5, 1.0}), std = torch::tensor({1.0, 2.0, 0.5});
  double rtg = 30.0;
  Tensor last;
  for (int64_t t = 0; t < 4; ++t) {
    const Tensor observation = waves({1, 3}, static_cast<double>(t));
    states.push_back((observation - mean) / std);
    rtgs.push_back(torch::full({1, 1}, rtg / 10.0));
    last = policy.act(observation);
    actions.push_back(last);
    policy.observe(torch::full({1}, 1.5));
    rtg -= 1.5;
  }
  actions.back() = torch::zeros({1, 2});
  model->eval();
  torch::NoGradGuard no_grad;
  const Tensor expected = model
                              ->forward(torch::stack(states, 1), torch::stack(actions, 1),
                                        torch::stack(rtgs, 1), torch::arange(4).unsqueeze(0))
                              .select(1, 3);
  EXPECT_LE((last - expected).abs().max().item<double>(), 2e-6);
}

TEST(Policy, EpisodesLongerThanTheTimestepTableGoOn) {
  for (const char* kind : {"windowed", "recurrent"}) {
    const auto actions = act_all(kind, make_model(), 55, {1000, 1000, 1000});
    EXPECT_TRUE(torch::isfinite(torch::stack(actions)).all().item<bool>());
  }
}

TEST(Policy, RoundedWeightsActAlike) {
  const std::vector<int64_t> lengths{6, 4, 5};
  PolicyOptions rounded = options("recurrent");
  rounded.weights = "bf16";
  Policy policy(make_model(), rounded);
  const auto got = act(policy, 25, lengths, torch::arange(kEnvs));
  const auto exact = act_all("recurrent", make_model(), 25, lengths);
  const double scale = torch::stack(exact).abs().max().item<double>();
  EXPECT_LE(largest_difference(got, exact), 2e-2 * scale);
  EXPECT_GT(largest_difference(got, exact), 0.0);
}

TEST(Policy, LeavesTheModelInItsMode) {
  DMamba model = make_model();
  Policy policy(model, options("windowed"));
  policy.act(torch::zeros({kEnvs, 3}));
  EXPECT_TRUE(model->is_training());
  model->eval();
  policy.act(torch::zeros({kEnvs, 3}));
  EXPECT_FALSE(model->is_training());
}

TEST(Policy, ReturnedActionsBelongToTheCaller) {
  for (const char* kind : {"windowed", "recurrent"}) {
    Policy kept(make_model(), options(kind)), spoilt(make_model(), options(kind));
    const Tensor observation = waves({kEnvs, 3}, 0.0);
    kept.act(observation);
    spoilt.act(observation).fill_(100.0);
    for (Policy* policy : {&kept, &spoilt}) policy->observe(torch::zeros({kEnvs}));
    EXPECT_TRUE(torch::equal(kept.act(observation), spoilt.act(observation))) << kind;
  }
}

TEST(Policy, ErrorsNameWhatIsWrong) {
  const auto config_error = [](PolicyOptions o) -> std::string {
    try {
      Policy policy(make_model(), std::move(o));
    } catch (const ConfigError& error) {
      return error.what();
    }
    return "no error";
  };
  EXPECT_EQ(config_error(options("greedy")),
            "policy 'greedy' is unknown; choose one of windowed, recurrent");
  EXPECT_EQ(config_error(options("windowed", 0)), "Policy: num_envs must be at least 1, got 0");
  PolicyOptions short_mean = options("windowed");
  short_mean.state_mean.pop_back();
  EXPECT_EQ(config_error(short_mean),
            "Policy: state_mean has 2 entries, the model's states have 3");
  PolicyOptions other_weights = options("recurrent");
  other_weights.weights = "int4";
  EXPECT_EQ(config_error(other_weights),
            "Policy: weights 'int4' are unknown; choose one of fp32, bf16");
  PolicyOptions windowed_bf16 = options("windowed");
  windowed_bf16.weights = "bf16";
  EXPECT_EQ(
      config_error(windowed_bf16),
      "Policy: weights bf16 are for kind recurrent and a float32 model of mamba layers on the "
      "CPU; choose fp32");
  Policy policy(make_model(), options("windowed"));
  EXPECT_THROW(policy.act(torch::zeros({kEnvs, 4})), c10::Error);
  EXPECT_THROW(policy.observe(torch::zeros({2})), c10::Error);
  EXPECT_THROW(policy.reset(torch::ones({2}, torch::kBool), torch::zeros({kEnvs})), c10::Error);
}

}  // namespace
}  // namespace dmamba::model
