// A layer: its equation, its names, its choices; dropout and the table of mixers.
#include "dmamba/nn/block.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <algorithm>

#include "dmamba/common/error.h"
#include "dmamba/nn/elementwise.h"
#include "dmamba/nn/mamba.h"

namespace dmamba::nn {
namespace {

using torch::Tensor;

config::ModelConfig small_config() {
  config::ModelConfig config;
  config.d_model = 16;
  config.d_state = 4;
  config.dropout = 0.0;
  return config;
}

template <class Action>
std::string config_error(Action action) {
  try {
    action();
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "no ConfigError";
}

TEST(Block, IsPreNormAndResidualTwice) {
  torch::manual_seed(1);
  Block block("mamba", small_config());
  const auto children = block->named_children();
  auto* mixer = children["mamba"]->as<Mamba>();
  auto* mlp = children["mlp_channels"]->as<torch::nn::Sequential>();
  const Tensor x = torch::randn({2, 6, 16});
  const auto norm = [](const Tensor& t) { return torch::layer_norm(t, {16}); };
  const Tensor mixed = x + mixer->forward(norm(x), {});
  const auto linear = [&](size_t i) { return mlp->ptr(i)->as<torch::nn::Linear>(); };
  const Tensor hidden = torch::gelu(linear(0)->forward(norm(mixed)));
  const Tensor expected = mixed + linear(2)->forward(hidden);
  EXPECT_LE((block->forward(x, {}) - expected).abs().max().item<double>(), 2e-6);
}

TEST(Block, ChannelMixingNoneLeavesTheMixerAlone) {
  config::ModelConfig config = small_config();
  config.channel_mixing = "none";
  Block block("mamba", config);
  std::vector<std::string> names;
  for (const auto& item : block->named_children()) names.push_back(item.key());
  EXPECT_EQ(names, (std::vector<std::string>{"norm_mamba", "mamba"}));
}

TEST(Block, StepsEqualForward) {
  torch::manual_seed(2);
  Block block("mamba", small_config());
  torch::NoGradGuard no_grad;
  const Tensor x = torch::randn({2, 7, 16});
  const auto state = block->initial_state(2);
  std::vector<Tensor> outs;
  for (int64_t t = 0; t < 7; ++t) outs.push_back(block->step(x.narrow(1, t, 1), {}, *state));
  EXPECT_LE((torch::cat(outs, 1) - block->forward(x, {})).abs().max().item<double>(), 2e-6);
}

TEST(Block, UnknownChoicesAreErrorsThatListWhatThereIs) {
  config::ModelConfig config = small_config();
  EXPECT_EQ(
      config_error([&] { Block block("hyena", config); }),
      "model.token_mixer: 'hyena' is unknown; choose one of mamba, attention, convolution, s4d");
  config.channel_mixing = "moe";
  EXPECT_EQ(config_error([&] { Block block("mamba", config); }),
            "model.channel_mixing: 'moe' is unknown; choose one of mlp, ssm, none");
}

TEST(TokenMixers, EachNameOfTheTableMakesOneThatKeepsTheShape) {
  const auto names = token_mixer_names();
  EXPECT_NE(std::find(names.begin(), names.end(), "mamba"), names.end());
  for (const std::string& name : names) {
    const auto mixer = make_token_mixer(name, small_config());
    EXPECT_EQ(mixer->forward(torch::randn({2, 5, 16}), {}).sizes(), at::IntArrayRef({2, 5, 16}));
  }
}

TEST(Dropout, WorksWhileTrainingAndFollowsTheSeed) {
  Dropout dropout(0.5);
  const Tensor x = torch::ones({4, 100});
  const auto draw = [&] {
    torch::manual_seed(9);
    const Tensor first = dropout(x);
    return std::make_pair(first, dropout(x));
  };
  const auto [a, b] = draw();
  const auto [again_a, again_b] = draw();
  EXPECT_TRUE(torch::equal(a, again_a));
  EXPECT_TRUE(torch::equal(b, again_b));
  EXPECT_FALSE(torch::equal(a, b));
  EXPECT_NE(config_error([] { Dropout all(1.0); }).find("[0, 1)"), std::string::npos);
  dropout->eval();
  EXPECT_TRUE(torch::equal(dropout(x), x));
}

}  // namespace
}  // namespace dmamba::nn
