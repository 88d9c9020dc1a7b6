// The trainer: it learns, and no way of cutting a run into pieces changes a bit of it.
#include "dmamba/train/trainer.h"

#include <ATen/autocast_mode.h>

#include "tests/cpp/train/test_support.h"

namespace dmamba::train {
namespace {

using testing::expect_contains;
using testing::make_model;
using testing::make_store;
using testing::message_of;
using testing::same_parameters;
using testing::small_run;
using testing::TemporaryFolder;
using torch::Tensor;

void append(std::vector<MetricsRow>& rows, const std::vector<MetricsRow>& more) {
  rows.insert(rows.end(), more.begin(), more.end());
}

void expect_same_rows(const std::vector<MetricsRow>& a, const std::vector<MetricsRow>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    EXPECT_EQ(a[i].step, b[i].step);
    EXPECT_EQ(a[i].loss, b[i].loss) << "row " << i;
    EXPECT_EQ(a[i].gradient_norm, b[i].gradient_norm) << "row " << i;
    EXPECT_EQ(a[i].learning_rate, b[i].learning_rate) << "row " << i;
  }
}

/// A run to its end, without interruption.
struct Whole {
  model::DMamba model = make_model(small_run());
  std::vector<MetricsRow> rows;
  std::string checkpoint;

  Whole() {
    Trainer trainer(small_run(), make_store(), model);
    rows = trainer.run(1e9);
    EXPECT_TRUE(trainer.finished());
    const TemporaryFolder folder;
    trainer.save(folder / "ckpt");
    checkpoint = testing::read(folder / "ckpt/optimizer.safetensors") +
                 testing::read(folder / "ckpt/state.json");
  }
};

TEST(Trainer, RowsFallDueEveryIntervalAndAtTheEnd) {
  const Whole whole;
  ASSERT_EQ(whole.rows.size(), 3u);
  EXPECT_EQ(whole.rows[0].step, 5);
  EXPECT_EQ(whole.rows[1].step, 10);
  EXPECT_EQ(whole.rows[2].step, 13);
  for (const MetricsRow& row : whole.rows) {
    EXPECT_GT(row.loss, 0.0);
    EXPECT_GT(row.gradient_norm, 0.0);
    EXPECT_GT(row.learning_rate, 0.0);
  }
}

TEST(Trainer, ResumedRunHasTheBitsOfAWholeOneAtAnySplit) {
  const Whole whole;
  for (const int64_t split : {1, 3, 5, 7, 10, 12}) {
    SCOPED_TRACE("split at " + std::to_string(split));
    const TemporaryFolder folder;
    std::vector<MetricsRow> rows;
    {
      Trainer first(small_run(), make_store(), make_model(small_run()));
      rows = first.run(1e9, split);
      first.save(folder / "ckpt");
    }
    torch::manual_seed(12345);
    model::DMamba model = make_model(small_run(), 777);
    Trainer second(small_run(), make_store(), model);
    second.load(folder / "ckpt");
    EXPECT_EQ(second.step(), split);
    append(rows, second.run(1e9));
    EXPECT_TRUE(same_parameters(*model, *whole.model));
    expect_same_rows(rows, whole.rows);
    second.save(folder / "end");
    EXPECT_EQ(testing::read(folder / "end/optimizer.safetensors") +
                  testing::read(folder / "end/state.json"),
              whole.checkpoint);
  }
}

TEST(Trainer, SavingTwiceOnTheWayChangesNothing) {
  const Whole whole;
  const TemporaryFolder folder;
  model::DMamba model = make_model(small_run());
  Trainer trainer(small_run(), make_store(), model);
  std::vector<MetricsRow> rows;
  while (!trainer.finished()) {
    append(rows, trainer.run(1e9, 2));
    trainer.save(folder / "ckpt");
  }
  EXPECT_TRUE(same_parameters(*model, *whole.model));
  expect_same_rows(rows, whole.rows);
}

TEST(Trainer, BurstsDoNotChangeBits) {
  const Whole whole;
  model::DMamba model = make_model(small_run());
  Trainer trainer(small_run(), make_store(), model);
  std::vector<MetricsRow> rows;
  for (int64_t bursts = 1; !trainer.finished(); ++bursts) {
    append(rows, trainer.run(0.0));
    ASSERT_EQ(trainer.step(), bursts) << "a burst of no time is one step";
  }
  EXPECT_TRUE(trainer.run(1e9).empty());
  EXPECT_TRUE(same_parameters(*model, *whole.model));
  expect_same_rows(rows, whole.rows);
}

TEST(Trainer, GeneratorOfTorchIsLeftAloneAndDoesNotMatter) {
  const Whole whole;
  model::DMamba model = make_model(small_run());
  Trainer trainer(small_run(), make_store(), model);
  torch::manual_seed(4242);
  const Tensor expected = torch::rand({8});
  torch::manual_seed(4242);
  while (!trainer.finished()) {
    trainer.run(1e9, 4);
    EXPECT_TRUE(torch::equal(torch::rand({8}), expected));
    torch::manual_seed(4242);
  }
  EXPECT_TRUE(same_parameters(*model, *whole.model));
}

TEST(Trainer, SeedDecidesTheRun) {
  const Whole whole;
  config::Config config = small_run();
  config.seed = 12;
  model::DMamba model = make_model(config);
  Trainer trainer(config, make_store(), model);
  EXPECT_NE(trainer.run(1e9)[0].loss, whole.rows[0].loss);
}

TEST(Trainer, LossDecreases) {
  for (const char* padding : {"masked", "paper"}) {
    config::Config config = small_run();
    config.model.padding = padding;
    config.training.steps = 200;
    config.training.log_every = 20;
    config.training.learning_rate = 3e-3;
    Trainer trainer(config, make_store(), make_model(config));
    const auto rows = trainer.run(1e9);
    EXPECT_LT(rows.back().loss, 0.2 * rows.front().loss) << padding;
  }
}

TEST(Trainer, RowIsTheMeanOfItsSteps) {
  config::Config config = small_run();
  config.training.steps = 5;
  const auto coarse = Trainer(config, make_store(), make_model(config)).run(1e9);
  config.training.log_every = 1;
  const auto fine = Trainer(config, make_store(), make_model(config)).run(1e9);
  ASSERT_EQ(coarse.size(), 1u);
  ASSERT_EQ(fine.size(), 5u);
  double loss = 0, norm = 0;
  for (const MetricsRow& row : fine) {
    loss += row.loss / 5;
    norm += row.gradient_norm / 5;
  }
  EXPECT_NEAR(coarse[0].loss, loss, 1e-12);
  EXPECT_NEAR(coarse[0].gradient_norm, norm, 1e-12);
  EXPECT_EQ(coarse[0].learning_rate, fine[4].learning_rate);
}

TEST(Trainer, LossThatIsNotFiniteIsAnErrorThatNamesTheStep) {
  model::DMamba model = make_model(small_run());
  Trainer trainer(small_run(), make_store(), model);
  {
    torch::NoGradGuard no_grad;
    model->named_parameters()["embed_state.weight"].fill_(NAN);
  }
  const std::string message = message_of<NotFiniteError>([&] { trainer.run(1e9); });
  expect_contains(message, {"not finite in step 1 ", "seed 11", "segments of waves, from step",
                            "of episode", "training.skip_nan_batches"});
  EXPECT_EQ(trainer.step(), 0);
  EXPECT_EQ(message_of<NotFiniteError>([&] { trainer.run(1e9); }), message);
}

TEST(Trainer, PassesOverBatchesThatAreNotFinite) {
  config::Config config = small_run();
  config.training.skip_nan_batches = 3;
  model::DMamba model = make_model(config);
  Trainer trainer(config, make_store(), model);
  Tensor weight = model->named_parameters()["embed_state.weight"];
  const Tensor before = weight.detach().clone();
  {
    torch::NoGradGuard no_grad;
    weight[0][0] = NAN;
  }
  EXPECT_TRUE(trainer.run(1e9, 2).empty());
  EXPECT_EQ(trainer.skipped(), 2);
  for (const auto& item : model->named_parameters()) {
    if (item.key() == "embed_state.weight") continue;
    EXPECT_TRUE(item.value().isfinite().all().item<bool>()) << item.key();
  }
  {
    torch::NoGradGuard no_grad;
    weight.copy_(before);
  }
  const std::vector<MetricsRow> rows = trainer.run(1e9, 3);
  ASSERT_EQ(rows.size(), 1u);
  EXPECT_EQ(rows[0].step, 5);
  EXPECT_EQ(rows[0].skipped, 2);
  EXPECT_TRUE(std::isfinite(rows[0].loss));
  const TemporaryFolder folder;
  trainer.save(folder / "ckpt");
  Trainer other(config, make_store(), make_model(config));
  other.load(folder / "ckpt");
  EXPECT_EQ(other.skipped(), 2);
  expect_same_rows(trainer.run(1e9), other.run(1e9));
  {
    torch::NoGradGuard no_grad;
    weight[0][0] = INFINITY;
  }
  expect_contains(message_of<NotFiniteError>([&] { trainer.save(folder / "bad"); }),
                  {"embed_state.weight", "holds NaN or infinity"});
  EXPECT_FALSE(std::filesystem::exists(folder / "bad"));
}

TEST(Trainer, WhatDoesNotFitIsNamed) {
  const auto message = [](const config::Config& config, std::shared_ptr<data::MemoryStore> store) {
    return message_of<ConfigError>([&] { Trainer trainer(config, store, make_model(config)); });
  };
  expect_contains(message(small_run(), make_store(4, 2)), {"waves", "4", "3"});
  config::Config config = small_run();
  config.dataset.rtg_scale = 0.0;
  expect_contains(message(config, make_store()), {"dataset.rtg_scale"});
  config = small_run();
  config.training.precision = "tf32";
  expect_contains(message(config, make_store()), {"training.precision", "tf32", "CPU"});
  config = small_run();
  config.training.batch_size = 0;
  expect_contains(message(config, make_store()), {"training.batch_size", "0"});
  config = small_run();
  config.model.context_length = 21;
  expect_contains(
      message_of<DataError>([&] { Trainer trainer(config, make_store(), make_model(config)); }),
      {"waves", "21", "20"});
}

TEST(Trainer, Bfloat16IsCloseToFloat32AndLeavesParametersInFloat32) {
  config::Config config = small_run();
  config.training.steps = 40;
  config.training.log_every = 40;
  const auto exact = Trainer(config, make_store(), make_model(config)).run(1e9);
  config.training.precision = "bf16";
  const auto rounded_run = [&] {
    model::DMamba model = make_model(config);
    const auto rows = Trainer(config, make_store(), model).run(1e9);
    for (const Tensor& p : model->parameters()) EXPECT_EQ(p.scalar_type(), torch::kFloat);
    return rows[0].loss;
  };
  const double rounded = rounded_run();
  EXPECT_NE(rounded, exact[0].loss);
  EXPECT_NEAR(rounded, exact[0].loss, 0.05 * exact[0].loss);
  {
    // A region of the caller's, with casts of its own: neither they nor its type reach the steps.
    at::autocast::set_autocast_enabled(at::kCPU, true);
    at::autocast::set_autocast_dtype(at::kCPU, at::kHalf);
    EXPECT_EQ(rounded_run(), rounded);
    config.training.precision = "fp32";
    EXPECT_EQ(Trainer(config, make_store(), make_model(config)).run(1e9)[0].loss, exact[0].loss);
    EXPECT_TRUE(at::autocast::is_autocast_enabled(at::kCPU));
    EXPECT_EQ(at::autocast::get_autocast_dtype(at::kCPU), at::kHalf);
    at::autocast::clear_cache();
    at::autocast::set_autocast_enabled(at::kCPU, false);
    at::autocast::set_autocast_dtype(at::kCPU, at::kBFloat16);
  }
}

TEST(Trainer, DeviceMayDifferWhenARunIsContinued) {
  const TemporaryFolder folder;
  config::Config config = small_run();
  Trainer first(config, make_store(), make_model(config));
  first.run(1e9, 4);
  first.save(folder / "ckpt");
  config.training.device = "auto";
  Trainer second(config, make_store(), make_model(config));
  second.load(folder / "ckpt");
  EXPECT_EQ(second.step(), 4);
  config.training.device = "cpu";
  config.training.precision = "bf16";
  Trainer third(config, make_store(), make_model(config));
  expect_contains(message_of<CheckpointError>([&] { third.load(folder / "ckpt"); }),
                  {"training.precision was fp32, now bf16"});
}

}  // namespace
}  // namespace dmamba::train
