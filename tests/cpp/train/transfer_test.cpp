// Parameters of another run: what is taken, what begins anew, what is an error.
#include "dmamba/train/transfer.h"

#include <algorithm>
#include <functional>
#include <set>

#include "dmamba/train/safetensors.h"
#include "tests/cpp/train/test_support.h"

namespace dmamba::train {
namespace {

using testing::expect_contains;
using testing::make_model;
using testing::make_store;
using testing::message_of;
using testing::small_run;
using testing::TemporaryFolder;
using torch::Tensor;
using Names = std::vector<std::string>;

/// A checkpoint of a run on states of 3 components and actions of 2, in Hopper-v4.
class InitParameters : public ::testing::Test {
 protected:
  InitParameters() {
    origin_config_.dataset.environment = "Hopper-v4";
    Trainer trainer(origin_config_, make_store(), origin_);
    trainer.run(100.0, 2);
    trainer.save(checkpoint());
  }
  std::filesystem::path checkpoint() const { return folder_ / "step-00000002"; }

  /// The message after a change of the config, with a model of it.
  std::string error_after(const std::function<void(config::Config&)>& change) {
    config::Config config = origin_config_;
    change(config);
    model::DMamba model(3, 2, config.model);
    model::DMamba before(3, 2, config.model);
    copy(*model, *before);
    const std::string message =
        message_of<Error>([&] { init_parameters(checkpoint(), *model, config); });
    EXPECT_TRUE(testing::same_parameters(*model, *before)) << "changed by what failed";
    return message;
  }

  static void copy(const torch::nn::Module& from, torch::nn::Module& to) {
    torch::NoGradGuard no_grad;
    auto targets = to.named_parameters();
    for (const auto& item : from.named_parameters()) targets[item.key()].copy_(item.value());
  }

  TemporaryFolder folder_;
  config::Config origin_config_ = small_run();
  model::DMamba origin_ = make_model(origin_config_);
};

TEST_F(InitParameters, TheSameSizesGiveEveryParameter) {
  model::DMamba model = make_model(origin_config_, 2);
  ASSERT_FALSE(testing::same_parameters(*model, *origin_));
  const TransferReport report = init_parameters(checkpoint(), *model, origin_config_);
  EXPECT_TRUE(testing::same_parameters(*model, *origin_));
  EXPECT_EQ(report.taken.size(), model->named_parameters().size());
  EXPECT_TRUE(report.fresh.empty());
  for (const Tensor& parameter : model->parameters()) EXPECT_TRUE(parameter.requires_grad());
}

TEST_F(InitParameters, ABareFileWillDo) {
  model::DMamba model = make_model(origin_config_, 2);
  config::Config config = origin_config_;
  config.dataset.environment = "HalfCheetah-v4";  // of which a file says nothing
  init_parameters(checkpoint() / "model.safetensors", *model, config);
  EXPECT_TRUE(testing::same_parameters(*model, *origin_));
}

TEST_F(InitParameters, EmbeddingsAndHeadOfOtherSizesBeginAnew) {
  torch::manual_seed(3);
  model::DMamba model(7, 2, origin_config_.model);
  const auto before = model->named_parameters()["embed_state.bias"].detach().clone();
  TransferReport report = init_parameters(checkpoint(), *model, origin_config_);
  EXPECT_EQ(report.fresh, (Names{"embed_state.weight", "embed_state.bias"}));
  const auto parameters = model->named_parameters();
  EXPECT_TRUE(torch::equal(parameters["embed_state.bias"], before));  // goes with its weight
  EXPECT_TRUE(torch::equal(parameters["embed_action.weight"],
                           origin_->named_parameters()["embed_action.weight"]));

  model::DMamba other(3, 4, origin_config_.model);
  report = init_parameters(checkpoint(), *other, origin_config_);
  EXPECT_EQ(report.fresh, (Names{"embed_action.weight", "embed_action.bias",
                                 "predict_action.0.weight", "predict_action.0.bias"}));
}

TEST_F(InitParameters, AnotherEnvironmentOfTheSameSizesBeginsAnewToo) {
  const Names all{"embed_state.weight", "embed_state.bias",        "embed_action.weight",
                  "embed_action.bias",  "predict_action.0.weight", "predict_action.0.bias"};
  config::Config config = origin_config_;
  config.dataset.environment = "Walker2d-v4";
  model::DMamba model = make_model(config, 2);
  EXPECT_EQ(init_parameters(checkpoint(), *model, config).fresh, all);
  config.dataset.environment = "Hopper-v5";  // the same states and actions
  EXPECT_TRUE(init_parameters(checkpoint(), *model, config).fresh.empty());
  config.dataset.environment = "Walker2d-v4";
  config.transfer.fresh = {};  // whoever knows better
  EXPECT_TRUE(init_parameters(checkpoint(), *model, config).fresh.empty());
}

TEST_F(InitParameters, PatternsOfFresh) {
  config::Config config = origin_config_;
  config.transfer.fresh = {"auto", "*.ln_2.*", "embed_return.weight"};
  model::DMamba model = make_model(config, 2);
  const TransferReport report = init_parameters(checkpoint(), *model, config);
  EXPECT_EQ(std::set<std::string>(report.fresh.begin(), report.fresh.end()),
            (std::set<std::string>{"transformer.h.0.ln_2.weight", "transformer.h.0.ln_2.bias",
                                   "embed_return.weight"}));
  expect_contains(error_after([](auto& c) { c.transfer.fresh = {"transformer.h.1.*"}; }),
                  {"'transfer.fresh': 'transformer.h.1.*' matches no parameter", "embed_state"});
}

TEST_F(InitParameters, WithoutAutoOtherSizesAreErrors) {
  config::Config config = origin_config_;
  config.transfer.fresh = {};
  model::DMamba model(7, 2, config.model);
  expect_contains(
      message_of<CheckpointError>([&] { init_parameters(checkpoint(), *model, config); }),
      {"'embed_state.weight' is [16, 3] there, [16, 7] here", "transfer.fresh"});
}

TEST_F(InitParameters, AnythingElseIsAnErrorThatNamesParameterAndShapes) {
  expect_contains(error_after([](auto& c) { c.model.d_model = 32; }),
                  {"step-00000002", "parameter 'transformer.h.0.", "[16] there, [32] here",
                   "model.d_model is 16 there, 32 here", "transfer.fresh"});
  expect_contains(error_after([](auto& c) { c.model.n_layer = 2; }),
                  {"has no parameter 'transformer.h.1.", "model.n_layer is 1 there, 2 here"});
  expect_contains(error_after([](auto& c) { c.model.max_timestep = 40; }),
                  {"'embed_timestep.weight' is [30, 16] there, [40, 16] here",
                   "model.max_timestep is 30 there, 40 here"});
  expect_contains(error_after([](auto& c) { c.model.channel_mixing = "none"; }),
                  {"parameter 'transformer.h.0.", "has no counterpart in this model",
                   "model.channel_mixing is mlp there, none here"});
  expect_contains(error_after([](auto& c) { c.model.d_state = 8; }),
                  {"A_log' is [32, 4] there, [32, 8] here", "model.d_state is 4 there, 8 here"});
}

TEST_F(InitParameters, WhatIsNoCheckpointSaysSo) {
  model::DMamba model = make_model(origin_config_);
  const auto message = [&](const std::filesystem::path& from, const std::string& set = "") {
    config::Config config = origin_config_;
    config.transfer.set = set;
    return message_of<CheckpointError>([&] { init_parameters(from, *model, config); });
  };
  expect_contains(message(folder_ / "nothing"), {"there is no", "safetensors file"});
  expect_contains(message(checkpoint(), "hopper"),
                  {"has no set 'hopper'", "trained on one set: leave the key out"});
  const int64_t number = 3;
  write_safetensors(folder_ / "odd.safetensors",
                    {{"embed_return.bias", "I64", {1}, &number, sizeof(number)}});
  EXPECT_NE(message(folder_ / "odd.safetensors"), "");
}

TEST(Freeze, FrozenParametersKeepTheirBitsAndTheOthersLearn) {
  config::Config config = small_run();
  config.transfer.freeze = {"transformer.*", "embed_*"};
  config.training.decay = "all";
  config.training.weight_decay = 0.5;
  model::DMamba model = make_model(config);
  std::map<std::string, Tensor> before;
  for (const auto& item : model->named_parameters()) {
    before[item.key()] = item.value().detach().clone();
  }
  Trainer trainer(config, make_store(), model);
  trainer.run(100.0);
  for (const auto& item : model->named_parameters()) {
    const bool learns = item.key().starts_with("predict_action.");
    EXPECT_EQ(torch::equal(item.value(), before[item.key()]), !learns) << item.key();
    EXPECT_EQ(item.value().requires_grad(), learns) << item.key();
  }
}

TEST(Freeze, PatternsThatMatchNothingAndNothingLeftAreErrors) {
  config::Config config = small_run();
  const auto message = [&](const Names& patterns) {
    config.transfer.freeze = patterns;
    return message_of<ConfigError>([&] { Trainer(config, make_store(), make_model(config)); });
  };
  expect_contains(
      message({"transformer.*", "embedding*"}),
      {"'transfer.freeze': 'embedding*' matches no parameter", "embed_timestep.weight"});
  expect_contains(message({"*"}), {"transfer.freeze", "nothing is left to train"});
}

TEST(Resume, AFineTuningRunContinuesToTheSameBits) {
  const TemporaryFolder folder;
  config::Config config = small_run();
  config.transfer.freeze = {"embed_*"};
  config.transfer.learning_rates = {"transformer.*=0.25", "*.A_log=0.5"};
  model::DMamba whole = make_model(config), first = make_model(config),
                second = make_model(config, 9);
  Trainer(config, make_store(), whole).run(100.0);
  Trainer stopped(config, make_store(), first);
  stopped.run(100.0, 7);
  stopped.save(folder / "ckpt");
  Trainer continued(config, make_store(), second);
  continued.load(folder / "ckpt");
  continued.run(100.0);
  EXPECT_TRUE(testing::same_parameters(*whole, *second));
}

TEST(Statistics, GivenOnesStandTheStates) {
  const config::Config config = small_run();
  const data::StateStatistics given{{1.0F, 2.0F, 3.0F}, {4.0F, 5.0F, 6.0F}};
  Trainer trainer(config, make_store(), make_model(config), nullptr, given);
  EXPECT_EQ(trainer.state().state_mean, given.mean);
  EXPECT_EQ(trainer.state().state_std, given.std);
  model::DMamba usual = make_model(config), other = make_model(config);
  Trainer(config, make_store(), usual).run(100.0, 2);
  Trainer(config, make_store(), other, nullptr, given).run(100.0, 2);
  EXPECT_FALSE(testing::same_parameters(*usual, *other));
}

}  // namespace
}  // namespace dmamba::train
