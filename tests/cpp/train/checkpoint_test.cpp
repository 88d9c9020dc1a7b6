// Checkpoints: what is written comes back; whatever is wrong is named and changes nothing.
#include "dmamba/train/checkpoint.h"

#include <atomic>
#include <functional>
#include <thread>

#include "tests/cpp/train/test_support.h"

namespace dmamba::train {
namespace {

namespace fs = std::filesystem;
using testing::expect_contains;
using testing::make_model;
using testing::make_store;
using testing::message_of;
using testing::same_parameters;
using testing::small_run;
using testing::TemporaryFolder;

/// A trainer some steps into its run.
struct TinyRun {
  config::Config config;
  model::DMamba model;
  Trainer trainer;

  explicit TinyRun(const config::Config& c = small_run(), uint64_t seed = 1)
      : config(c), model(make_model(c, seed)), trainer(c, make_store(), model) {}
};

fs::path save_after(int64_t steps, const TemporaryFolder& folder) {
  TinyRun run;
  run.trainer.run(1e9, steps);
  run.trainer.save(folder / "ckpt");
  return folder / "ckpt";
}

TEST(Checkpoint, GivesBackStateAndParameters) {
  const TemporaryFolder folder;
  TinyRun run;
  run.trainer.run(1e9, 7);
  run.trainer.save(folder / "ckpt");
  const TrainingState state = read_training_state(folder / "ckpt");
  EXPECT_EQ(state.config, run.config);
  EXPECT_EQ(state.step, 7);
  EXPECT_EQ(state.state_dim, 3);
  EXPECT_EQ(state.act_dim, 2);
  EXPECT_EQ(state.state_mean, run.trainer.state().state_mean);
  EXPECT_EQ(state.state_std, run.trainer.state().state_std);
  EXPECT_EQ(state.steps_summed, 2);
  EXPECT_GT(state.loss_sum, 0.0);
  model::DMamba other = make_model(run.config, 99);
  EXPECT_FALSE(same_parameters(*other, *run.model));
  load_parameters(folder / "ckpt", *other);
  EXPECT_TRUE(same_parameters(*other, *run.model));
}

TEST(Checkpoint, KeepsFp64Parameters) {
  const TemporaryFolder folder;
  model::DMamba model = make_model(small_run());
  model->to(torch::kDouble);
  save_checkpoint(folder / "ckpt", {}, *model, AdamW(*model, small_run().training));
  model::DMamba other = make_model(small_run(), 5);
  other->to(torch::kDouble);
  load_parameters(folder / "ckpt", *other);
  EXPECT_TRUE(same_parameters(*other, *model));
}

TEST(Checkpoint, ReplacesAnEarlierOneAndIgnoresWhatAKilledRunLeft) {
  const TemporaryFolder folder;
  fs::create_directories(folder / ".ckpt.tmp");
  testing::write(folder / ".ckpt.tmp/junk", "x");
  save_after(3, folder);
  save_after(6, folder);
  EXPECT_EQ(read_training_state(folder / "ckpt").step, 6);
  EXPECT_FALSE(fs::exists(folder / ".ckpt.tmp"));
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder / "ckpt")) {
    names.push_back(entry.path().filename().string());
  }
  std::sort(names.begin(), names.end());
  EXPECT_EQ(names,
            (std::vector<std::string>{"model.safetensors", "optimizer.safetensors", "state.json"}));
}

TEST(Checkpoint, FolderMayBeWrittenWithATrailingSlash) {
  const TemporaryFolder folder;
  TinyRun run;
  run.trainer.save(folder / "ckpt/");
  EXPECT_EQ(read_training_state(folder / "ckpt").step, 0);
}

TEST(Checkpoint, UnwritablePlaceIsAnErrorThatNamesIt) {
  const TemporaryFolder folder;
  testing::write(folder / "file", "");
  TinyRun run;
  expect_contains(message_of<Error>([&] { run.trainer.save(folder / "file/ckpt"); }),
                  {(folder / "file/ckpt").string()});
}

TEST(Checkpoint, MissingFolderAndFilesAreNamed) {
  const TemporaryFolder folder;
  TinyRun run;
  expect_contains(message_of<CheckpointError>([&] { run.trainer.load(folder / "none"); }),
                  {(folder / "none").string(), "state.json"});
  for (const char* name : {"model.safetensors", "optimizer.safetensors"}) {
    const fs::path ckpt = save_after(3, folder);
    fs::remove(ckpt / name);
    expect_contains(message_of<CheckpointError>([&] { run.trainer.load(ckpt); }),
                    {(ckpt / name).string()});
    EXPECT_EQ(run.trainer.step(), 0);
  }
}

TEST(Checkpoint, TruncatedFilesAreNamed) {
  const TemporaryFolder folder;
  for (const char* name : {"model.safetensors", "optimizer.safetensors", "state.json"}) {
    const fs::path ckpt = save_after(3, folder);
    const std::string whole = testing::read(ckpt / name);
    for (const size_t size : {size_t{0}, size_t{5}, whole.size() / 2, whole.size() - 2}) {
      testing::write(ckpt / name, whole.substr(0, size));
      TinyRun run;
      expect_contains(message_of<CheckpointError>([&] { run.trainer.load(ckpt); }),
                      {(ckpt / name).string()});
    }
  }
}

TEST(Checkpoint, StateOfAnotherFormatOrWithoutAFieldIsNamed) {
  const TemporaryFolder folder;
  const fs::path ckpt = save_after(3, folder), path = ckpt / "state.json";
  const std::string good = testing::read(path);
  const auto with = [&](const std::string& from, const std::string& to) {
    std::string text = good;
    const size_t at = text.find(from);
    EXPECT_NE(at, std::string::npos) << from;
    testing::write(path, text.replace(at, from.size(), to));
    return message_of<CheckpointError>([&] { read_training_state(ckpt); });
  };
  expect_contains(with("\"format\": 1", "\"format\": 99"), {path.string(), "99"});
  expect_contains(with("\"state_mean\"", "\"mean\""), {path.string(), "state_mean"});
  expect_contains(with("\"step\": 3", "\"step\": \"three\""), {path.string()});
}

TEST(Checkpoint, AChangedNumberIsTold) {
  const TemporaryFolder folder;
  const fs::path ckpt = save_after(3, folder), path = ckpt / "state.json";
  const std::string good = testing::read(path);
  const size_t at = good.find("\"loss_sum\": ") + 14;
  std::string text = good;
  text[at] = text[at] == '7' ? '3' : '7';
  testing::write(path, text);
  expect_contains(message_of<CheckpointError>([&] { read_training_state(ckpt); }),
                  {path.string(), "does not hold what was written: its checksum is"});
  // Checkpoints of older versions have none, and whoever changes one on purpose removes it.
  const size_t sum = text.find("\"crc32\"");
  testing::write(path, text.replace(sum, 7, "\"other\""));
  EXPECT_EQ(read_training_state(ckpt).step, 3);
  testing::write(path, good);
  EXPECT_EQ(read_training_state(ckpt).step, 3);
}

TEST(Checkpoint, TensorsOfAnotherModelAreNamedAndChangeNothing) {
  const TemporaryFolder folder;
  const fs::path ckpt = save_after(3, folder);
  const auto load_into = [&](const std::function<void(config::ModelConfig&)>& change) {
    config::Config config = small_run();
    change(config.model);
    model::DMamba model = make_model(config), before = make_model(config);
    const std::string message = message_of<CheckpointError>([&] { load_parameters(ckpt, *model); });
    EXPECT_TRUE(same_parameters(*model, *before));
    return message;
  };
  const std::string file = (ckpt / "model.safetensors").string();
  expect_contains(load_into([](auto& c) { c.d_state = 8; }),
                  {file, "mamba.A_log", "[32, 4]", "[32, 8]"});
  expect_contains(load_into([](auto& c) { c.n_layer = 2; }),
                  {file, "transformer.h.1.", "is missing"});
  expect_contains(load_into([](auto& c) { c.channel_mixing = "none"; }),
                  {file, "transformer.h.0.", "no counterpart"});
  model::DMamba wide = make_model(small_run());
  wide->to(torch::kDouble);
  expect_contains(message_of<CheckpointError>([&] { load_parameters(ckpt, *wide); }),
                  {file, "F32", "F64"});
}

TEST(Checkpoint, ResumingAnotherRunIsRefused) {
  const TemporaryFolder folder;
  const fs::path ckpt = save_after(3, folder);
  config::Config other = small_run();
  other.seed = 12;
  TinyRun reseeded(other);
  expect_contains(message_of<CheckpointError>([&] { reseeded.trainer.load(ckpt); }),
                  {ckpt.string(), "seed was 11, now 12"});
  other = small_run();
  other.model.padding = "paper";
  TinyRun repadded(other);
  expect_contains(message_of<CheckpointError>([&] { repadded.trainer.load(ckpt); }),
                  {ckpt.string(), "model.padding was masked, now paper"});
}

TEST(Checkpoint, AReaderFindsAWholeOneAtAnyMoment) {
  const TemporaryFolder folder;
  TinyRun run;
  run.trainer.save(folder / "ckpt");
  std::atomic<bool> done = false;
  int64_t missing = 0;
  std::thread reader([&] {
    const fs::path state = folder / "ckpt/state.json";
    while (!done) missing += fs::exists(state) ? 0 : 1;
  });
  for (int i = 0; i < 50; ++i) run.trainer.save(folder / "ckpt");
  done = true;
  reader.join();
  EXPECT_EQ(missing, 0);
}

/// The message of loading a checkpoint of small_run() into a run with another config; empty where
/// it loads.
std::string load_into_another(const fs::path& ckpt,
                              const std::function<void(config::Config&)>& change) {
  config::Config config = small_run();
  change(config);
  TinyRun run(config);
  try {
    run.trainer.load(ckpt);
  } catch (const CheckpointError& error) {
    EXPECT_EQ(run.trainer.step(), 0);
    return error.what();
  }
  EXPECT_EQ(run.trainer.step(), 3);
  return "";
}

TEST(Checkpoint, WhatShapedTheStepsIsNamedWhereItDiffers) {
  const TemporaryFolder folder;
  const fs::path ckpt = save_after(3, folder);
  const auto message = [&](const auto& change) { return load_into_another(ckpt, change); };
  expect_contains(message([](auto& c) {
                    c.training.batch_size = 4;
                    c.training.weight_decay = 0.5;
                  }),
                  {ckpt.string(), "training.batch_size was 8, now 4",
                   "training.weight_decay was 1e-04, now 0.5"});
  expect_contains(message([](auto& c) { c.dataset.rtg_scale = 7.0; }), {"dataset.rtg_scale"});
  expect_contains(message([](auto& c) { c.dataset.path = "other.hdf5"; }), {"dataset.path"});
  expect_contains(message([](auto& c) { c.training.learning_rate = 0.1; }), {"learning_rate"});
  expect_contains(message([](auto& c) { c.training.steps = 20; }), {"training.steps"});
  EXPECT_EQ(message([](auto& c) {
              c.name = "another";
              c.training.log_every = 2;
              c.training.checkpoint_every = 1;
              c.training.keep_checkpoints = 1;
              c.training.threads = 1;
              c.evaluation.episodes = 3;
            }),
            "");
}

TEST(Checkpoint, StepsMayBeAddedWhereTheScheduleIsConstant) {
  const TemporaryFolder folder;
  config::Config config = small_run();
  config.training.schedule = "constant";
  TinyRun run(config);
  run.trainer.run(1e9, 3);
  run.trainer.save(folder / "ckpt");
  config.training.steps += 5;
  TinyRun longer(config);
  longer.trainer.load(folder / "ckpt");
  EXPECT_EQ(longer.trainer.step(), 3);
}

TEST(Checkpoint, OtherDataUnderTheSameConfigIsRefused) {
  const TemporaryFolder folder;
  const fs::path ckpt = save_after(3, folder);
  Trainer other(small_run(), make_store(3, 2, /*frequency=*/0.4), make_model(small_run()));
  expect_contains(message_of<CheckpointError>([&] { other.load(ckpt); }),
                  {ckpt.string(), "waves", "dataset.path"});
}

}  // namespace
}  // namespace dmamba::train
