// Several sets at once: which a step trains on, what it changes, and what a checkpoint keeps.
#include <algorithm>
#include <map>

#include "dmamba/model/multi_dmamba.h"
#include "dmamba/train/transfer.h"
#include "tests/cpp/train/test_support.h"

namespace dmamba::train {
namespace {

using testing::expect_contains;
using testing::make_store;
using testing::message_of;
using testing::small_run;
using testing::TemporaryFolder;
using torch::Tensor;
using Stores = std::vector<std::shared_ptr<const data::TrajectoryStore>>;

config::Config two_sets(double temperature = 1.0) {
  config::Config config = small_run();
  config.dataset.rtg_scale = 0.0;
  config.pretraining.sets = {"waves.hdf5", "ripples.hdf5"};
  config.pretraining.rtg_scales = {10.0, 20.0};
  config.pretraining.temperature = temperature;
  return config;
}

model::MultiDMamba make_models(const config::Config& config, uint64_t seed = 1) {
  torch::manual_seed(seed);
  const model::DMamba first(3, 2, config.model);
  return model::MultiDMamba(std::vector<model::DMamba>{first, model::DMamba(5, 1, *first)},
                            std::vector<std::string>{"waves", "ripples"});
}

Stores make_stores() { return {make_store(3, 2), make_store(5, 1, 0.3)}; }

std::map<std::string, Tensor> copies(const torch::nn::Module& model) {
  std::map<std::string, Tensor> values;
  for (const auto& item : model.named_parameters()) {
    values[item.key()] = item.value().detach().clone();
  }
  return values;
}

TEST(MultiDMamba, HasTheTrunkOnceAndEachSetsOwn) {
  const config::Config config = two_sets();
  const model::MultiDMamba multi = make_models(config);
  const auto whole = multi->named_parameters(), first = multi->models()[0]->named_parameters(),
             second = multi->models()[1]->named_parameters();
  ASSERT_EQ(first.size(), second.size());
  EXPECT_EQ(whole.size(), first.size() + 6);
  for (const auto& item : second) {
    const std::string& name = item.key();
    const bool own = name.starts_with("embed_state") || name.starts_with("embed_action") ||
                     name.starts_with("predict_action");
    EXPECT_EQ(item.value().is_same(first[name]), !own) << name;
    EXPECT_TRUE(item.value().is_same(whole[(own ? "sets.ripples." : "") + name])) << name;
  }
}

TEST(MultiDMamba, ImpossibleNamesAndForeignTrunksAreErrors) {
  const config::Config config = two_sets();
  const model::DMamba first(3, 2, config.model), foreign(5, 1, config.model), second(5, 1, *first);
  const auto message = [&](std::vector<model::DMamba> models, std::vector<std::string> names) {
    return message_of<ConfigError>([&] { model::MultiDMamba(models, names); });
  };
  expect_contains(message({first, second}, {"a"}), {"2 models and 1 names"});
  expect_contains(message({first, second}, {"a", "a"}), {"two sets 'a'"});
  expect_contains(message({first, second}, {"a", "b.c"}), {"'b.c'", "no dots"});
  expect_contains(message({first, foreign}, {"a", "b"}), {"'b' has a trunk of its own", "'a'"});
}

TEST(MultiTask, AStepChangesTheTrunkAndItsOwnSetAlone) {
  const config::Config config = two_sets();
  model::MultiDMamba multi = make_models(config);
  Trainer trainer(config, make_stores(), multi);
  std::vector<int64_t> steps(2, 0);
  for (int64_t i = 0; i < config.training.steps; ++i) {
    const auto before = copies(*multi);
    trainer.run(100.0, 1);
    const auto& sets = trainer.state().sets;
    const size_t on = sets[0].steps > steps[0] ? 0 : 1;
    ++steps[on];
    ASSERT_EQ(sets[0].steps, steps[0]);
    ASSERT_EQ(sets[1].steps, steps[1]);
    for (const auto& item : multi->named_parameters()) {
      const bool of_other = item.key().starts_with(on == 0 ? "sets.ripples." : "sets.waves.");
      EXPECT_EQ(torch::equal(item.value(), before.at(item.key())), of_other)
          << item.key() << " in step " << i;
    }
  }
  EXPECT_GT(steps[0], 0);
  EXPECT_GT(steps[1], 0);
}

/// The first step on a set, whenever it comes, is a first step of what belongs to it: AdamW's bias
/// correction makes every component move by the learning rate, whatever its gradient.
TEST(MultiTask, MomentsAreAsOldAsTheStepsOnTheirSet) {
  config::Config config = two_sets();
  config.model.dropout = config.model.embedding_dropout = 0.0;
  config.training.schedule = "constant";
  config.training.warmup_steps = 0;
  config.transfer.freeze = {"transformer.*", "embed_*"};
  config.training.steps = 40;
  config.training.weight_decay = 0.0;
  config.training.gradient_clip = 0.0;
  model::MultiDMamba multi = make_models(config);
  const auto before = copies(*multi);
  Trainer trainer(config, make_stores(), multi);
  std::vector<bool> seen(2, false);
  for (int64_t i = 0; i < 40 && !(seen[0] && seen[1]); ++i) {
    const std::vector<int64_t> done{trainer.state().sets[0].steps, trainer.state().sets[1].steps};
    trainer.run(100.0, 1);
    for (size_t set = 0; set < 2; ++set) {
      if (trainer.state().sets[set].steps != 1 || done[set] != 0) continue;
      seen[set] = true;
      const std::string name =
          set == 0 ? "sets.waves.predict_action.0.bias" : "sets.ripples.predict_action.0.bias";
      const Tensor moved = (multi->named_parameters()[name].detach() - before.at(name)).abs();
      EXPECT_NEAR(moved.max().item<double>(), config.training.learning_rate, 1e-5) << name;
    }
  }
  EXPECT_TRUE(seen[0] && seen[1]);
}

TEST(MultiTask, SetsAreDrawnByTheirSizeToOneOverTemperature) {
  // 120 transitions to 40: 3 to 1, at temperature 2 the root of it to 1.
  data::TransitionArrays arrays;
  arrays.state_dim = 5;
  arrays.act_dim = 1;
  for (int64_t row = 0; row < 40; ++row) {
    arrays.observations.insert(arrays.observations.end(), 5, static_cast<float>(std::sin(row)));
    arrays.actions.push_back(0.5F);
    arrays.rewards.push_back(1.0F);
    arrays.terminals.push_back(0);
    arrays.timeouts.push_back((row + 1) % 20 == 0);
  }
  const Stores stores{make_store(3, 2), data::MemoryStore::create(std::move(arrays), "few")};
  for (const double temperature : {1.0, 2.0}) {
    config::Config config = two_sets(temperature);
    config.model.d_model = 4;
    config.model.context_length = 1;
    config.training.batch_size = 1;
    config.training.steps = 600;
    Trainer trainer(config, stores, make_models(config));
    trainer.run(1000.0);
    const double share = static_cast<double>(trainer.state().sets[0].steps) / 600.0;
    const double ratio = std::pow(3.0, 1.0 / temperature), expected = ratio / (ratio + 1.0);
    EXPECT_NEAR(share, expected, 4.0 * std::sqrt(expected * (1.0 - expected) / 600.0));
  }
}

TEST(MultiTask, AResumedRunHasTheSameBits) {
  const TemporaryFolder folder;
  const config::Config config = two_sets(3.0);
  model::MultiDMamba whole = make_models(config), first = make_models(config),
                     second = make_models(config, 9);
  Trainer(config, make_stores(), whole).run(100.0);
  Trainer stopped(config, make_stores(), first);
  stopped.run(100.0, 7);
  stopped.save(folder / "ckpt");
  Trainer continued(config, make_stores(), second);
  continued.load(folder / "ckpt");
  EXPECT_EQ(continued.state().sets[0].steps + continued.state().sets[1].steps, 7);
  continued.run(100.0);
  EXPECT_TRUE(testing::same_parameters(*whole, *second));

  Trainer other(config, {make_store(3, 2, 0.9), make_store(5, 1, 0.3)}, make_models(config));
  expect_contains(message_of<CheckpointError>([&] { other.load(folder / "ckpt"); }),
                  {"other data than pretraining.sets"});
}

TEST(MultiTask, ItsCheckpointGivesTheTrunkAndANamedSet) {
  const TemporaryFolder folder;
  const config::Config config = two_sets();
  model::MultiDMamba multi = make_models(config);
  Trainer trainer(config, make_stores(), multi);
  trainer.run(100.0, 5);
  trainer.save(folder / "ckpt");
  config::Config tuning = small_run();
  model::DMamba model(5, 1, tuning.model);
  TransferReport report = init_parameters(folder / "ckpt", *model, tuning);
  EXPECT_EQ(report.fresh.size(), 6U);
  for (const std::string& name : report.taken) {
    EXPECT_TRUE(torch::equal(model->named_parameters()[name], multi->named_parameters()[name]));
  }
  tuning.transfer.set = "ripples";
  report = init_parameters(folder / "ckpt", *model, tuning);
  EXPECT_TRUE(report.fresh.empty());
  EXPECT_TRUE(testing::same_parameters(*model, *multi->models()[1]));
  tuning.transfer.set = "puddles";
  expect_contains(
      message_of<CheckpointError>([&] { init_parameters(folder / "ckpt", *model, tuning); }),
      {"no set 'puddles'", "ripples, waves"});
}

TEST(MultiTask, NumbersOfSetsStoresAndModelsAgree) {
  config::Config config = two_sets();
  expect_contains(message_of<ConfigError>(
                      [&] { Trainer(config, Stores{make_store(3, 2)}, make_models(config)); }),
                  {"pretraining.sets names 2 sets, but 1 stores and 2 models"});
  config.pretraining.rtg_scales = {};
  expect_contains(
      message_of<ConfigError>([&] { Trainer(config, make_stores(), make_models(config)); }),
      {"pretraining.rtg_scales must be resolved"});
}

}  // namespace
}  // namespace dmamba::train
