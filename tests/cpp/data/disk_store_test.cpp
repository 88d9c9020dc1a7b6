// Transitions that stay on disk: what is read and drawn is, bit for bit, what memory would have
// given.
#include "data/disk_store.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "dmamba/common/error.h"
#include "dmamba/data/segment_sampler.h"
#include "dmamba/data/statistics.h"
#include "test_support.h"

namespace dmamba::data {
namespace {

using testing::expect_contains;
using testing::Hdf5Writer;
using testing::Layout;
using testing::message_of;
using testing::TemporaryFolder;

const std::string kData = DMAMBA_TEST_DATA;

struct Row {
  std::vector<float> states, actions, rewards, rtg;
  bool operator==(const Row&) const = default;
};

Row rows_of(const TrajectoryStore& store, std::int64_t first, std::int64_t count) {
  Row row;
  row.states.resize(count * store.state_dim());
  row.actions.resize(count * store.act_dim());
  row.rewards.resize(count);
  row.rtg.resize(count);
  store.read(first, count, row.states.data(), row.actions.data(), row.rewards.data(),
             row.rtg.data());
  return row;
}

struct Drawn {
  std::vector<float> states, actions, rtg;
  std::vector<std::int64_t> timesteps;
  std::array<bool, 64> mask;  // 16 segments of 4 steps
  bool operator==(const Drawn&) const = default;
};

Drawn drawn_from(const std::shared_ptr<TrajectoryStore>& store, std::uint64_t step) {
  constexpr std::int64_t kRows = 16, kSteps = 4;
  StateStatistics statistics = state_statistics(*store);
  const SegmentSampler sampler(store, {.batch_size = kRows,
                                       .context_length = kSteps,
                                       .seed = 3,
                                       .state_mean = statistics.mean,
                                       .state_std = statistics.std});
  Drawn batch;
  batch.states.resize(kRows * kSteps * store->state_dim());
  batch.actions.resize(kRows * kSteps * store->act_dim());
  batch.rtg.resize(kRows * kSteps);
  batch.timesteps.resize(kRows * kSteps);
  sampler.sample(step, {batch.states.data(), batch.actions.data(), batch.rtg.data(),
                        batch.timesteps.data(), batch.mask.data()});
  return batch;
}

std::size_t open_files() {
  const std::filesystem::directory_iterator files("/proc/self/fd");
  return static_cast<std::size_t>(std::distance(begin(files), end(files)));
}

class DiskStores : public ::testing::Test {
 protected:
  Storage on_disk() const { return {.kind = "disk", .scratch = folder_.file("scratch")}; }

  // Opens both ways and compares all of it.
  void expect_same(const std::string& path) {
    const auto memory = open_dataset(path, "auto", {.kind = "memory"});
    const auto disk = open_dataset(path, "auto", on_disk());
    ASSERT_NE(dynamic_cast<DiskStore*>(disk.get()), nullptr);
    ASSERT_EQ(dynamic_cast<DiskStore*>(memory.get()), nullptr);
    ASSERT_EQ(disk->num_transitions(), memory->num_transitions());
    ASSERT_EQ(disk->num_episodes(), memory->num_episodes());
    EXPECT_EQ(disk->dropped_transitions(), memory->dropped_transitions());
    EXPECT_EQ(disk->metadata(), memory->metadata());
    EXPECT_EQ(disk->name(), memory->name());
    for (std::int64_t i = 0; i < memory->num_episodes(); ++i) {
      const Episode a = memory->episode(i), b = disk->episode(i);
      EXPECT_EQ(std::tie(a.start, a.length, a.ret, a.terminated),
                std::tie(b.start, b.length, b.ret, b.terminated));
    }
    const std::int64_t rows = memory->num_transitions();
    EXPECT_EQ(rows_of(*disk, 0, rows), rows_of(*memory, 0, rows));
    EXPECT_EQ(rows_of(*disk, rows / 2, 1), rows_of(*memory, rows / 2, 1));
    for (const std::uint64_t step : {0, 1, 12345}) {
      EXPECT_EQ(drawn_from(disk, step), drawn_from(memory, step));
    }
    // What was written beside is gone: it has no name.
    EXPECT_TRUE(std::filesystem::is_empty(folder_.file("scratch")));
  }

  // What is wrong with a file of good fields that `spoil` made bad ones of, told both ways alike.
  std::string error_after(const std::function<void(Hdf5Writer&)>& spoil) {
    {
      Hdf5Writer writer(path_);
      writer.good_fields();
      spoil(writer);
    }
    const std::string told = message_of<DataError>([&] { open_dataset(path_, "auto", on_disk()); });
    EXPECT_EQ(told,
              message_of<DataError>([&] { open_dataset(path_, "auto", {.kind = "memory"}); }));
    return told;
  }

  TemporaryFolder folder_;
  std::string path_ = folder_.file("data.hdf5");
};

TEST_F(DiskStores, CompressedAndDoublePrecision) {
  expect_same(kData + "/d4rl_tiny.hdf5");
  expect_same(kData + "/d4rl_wide.hdf5");
}

// More rows than a block of any column, an episode longer than a block of rewards, and chunks that
// blocks must not cut.
void write_long(const std::string& path, const Layout& layout) {
  constexpr hsize_t kRows = 1'200'007;
  std::vector<float> states(2 * kRows), actions(kRows), rewards(kRows);
  std::vector<std::int8_t> terminals(kRows, 0), timeouts(kRows, 0);
  for (hsize_t row = 0; row < kRows; ++row) {
    states[2 * row] = static_cast<float>(row % 1009) / 7.0F;
    states[2 * row + 1] = static_cast<float>(row);
    actions[row] = static_cast<float>(row % 3) - 1.0F;
    rewards[row] = static_cast<float>(row % 11) / 10.0F;
  }
  terminals[4] = 1;
  timeouts[1'100'000] = 1;
  terminals[1'200'000] = 1;
  Layout column = layout, actions_layout = layout;
  if (!layout.chunk.empty()) {
    column.chunk = {layout.chunk[0]};
    actions_layout.chunk = {layout.chunk[0], 1};
  }
  Hdf5Writer writer(path);
  writer.floats("observations", {kRows, 2}, states, layout);
  writer.floats("actions", {kRows, 1}, actions, actions_layout);
  writer.floats("rewards", {kRows}, rewards, column);
  writer.flags("terminals", {kRows}, terminals, column);
  writer.flags("timeouts", {kRows}, timeouts, column);
}

TEST_F(DiskStores, LongerThanABlock) {
  write_long(path_, {});
  expect_same(path_);
}

TEST_F(DiskStores, LongerThanABlockInChunks) {
  write_long(path_, {.chunk = {70'001, 2}, .gzip = false});
  expect_same(path_);
}

TEST_F(DiskStores, FlagsAndRewardsAsMatrices) {
  {
    Hdf5Writer writer(path_);
    writer.good_fields();
    writer.remove("rewards");
    writer.remove("timeouts");
    writer.floats("rewards", {4, 1}, {1, 2, 3, 4});
    writer.flags("timeouts", {4, 1}, {0, 0, 0, 1});
  }
  const auto store = open_dataset(path_, "auto", on_disk());
  EXPECT_EQ(rows_of(*store, 0, 4).rtg, (std::vector<float>{6, 5, 3, 4}));
}

TEST_F(DiskStores, MinariGoesToDiskEpisodeByEpisode) {
  const std::string path = folder_.file("main_data.hdf5");
  {
    Hdf5Writer writer(path);
    for (int i = 0; i < 5; ++i) {
      const std::string episode = "episode_" + std::to_string(i);
      const auto steps = static_cast<hsize_t>(4 + i);
      std::vector<float> states(2 * (steps + 1));
      std::iota(states.begin(), states.end(), 10.0F * static_cast<float>(i));
      std::vector<std::int8_t> ends(steps, 0);
      ends.back() = 1;
      writer.group(episode);
      writer.floats(episode + "/observations", {steps + 1, 2}, states);
      writer.floats(episode + "/actions", {steps, 1}, std::vector<float>(steps, 0.5F));
      writer.floats(episode + "/rewards", {steps}, std::vector<float>(steps, 2.0F));
      writer.flags(episode + "/terminations", {steps}, ends);
      writer.flags(episode + "/truncations", {steps}, std::vector<std::int8_t>(steps, 0));
    }
  }
  expect_same(path);
  // Two episodes fit, the third does not: from then on all goes to disk.
  Storage some = on_disk();
  some.kind = "auto";
  some.memory_limit = bytes_in_memory(9, 2, 1);
  const auto store = open_dataset(path, "auto", some);
  ASSERT_NE(dynamic_cast<DiskStore*>(store.get()), nullptr);
  const auto whole = open_dataset(path, "auto", {.kind = "memory"});
  EXPECT_EQ(rows_of(*store, 0, 30), rows_of(*whole, 0, 30));
}

TEST_F(DiskStores, AutoGoesByTheLimit) {
  const std::string path = kData + "/d4rl_tiny.hdf5";  // 12 rows, states of 2, actions of 3
  const auto is_on_disk = [&](std::uint64_t limit) {
    const auto store = open_dataset(path, "auto", {.memory_limit = limit});
    return dynamic_cast<DiskStore*>(store.get()) != nullptr;
  };
  EXPECT_FALSE(is_on_disk(bytes_in_memory(12, 2, 3)));
  EXPECT_TRUE(is_on_disk(bytes_in_memory(12, 2, 3) - 1));
  EXPECT_FALSE(is_on_disk(0));  // half of what is free
  EXPECT_GT(free_memory(), std::uint64_t{1} << 20);
  expect_contains(message_of<ConfigError>([&] { open_dataset(path, "auto", {.kind = "ram"}); }),
                  {"storage must be one of auto, memory, disk, got 'ram'"});
}

TEST_F(DiskStores, BadValuesAreToldAsFromMemory) {
  expect_contains(error_after([](Hdf5Writer& writer) {
                    writer.remove("observations");
                    writer.floats("observations", {4, 2}, {0, 1, 2, NAN, 4, INFINITY, 6, 7});
                  }),
                  {"observations row 1, column 1 is NaN (2 such values"});
  expect_contains(error_after([](Hdf5Writer& writer) {
                    writer.remove("rewards");
                    writer.floats("rewards", {4}, {1, 3e38F, 3e38F, 1});
                  }),
                  {"return-to-go at row 1 leaves"});
  expect_contains(error_after([](Hdf5Writer& writer) {
                    writer.remove("terminals");
                    writer.remove("timeouts");
                    writer.flags("terminals", {4}, {0, 0, 0, 0});
                    writer.flags("timeouts", {4}, {0, 0, 0, 0});
                  }),
                  {"no episode ends", "4 rows"});
  expect_contains(error_after([](Hdf5Writer& writer) {
                    writer.remove("timeouts");
                    writer.flags("timeouts", {4}, {0, 0, 3, 1});
                  }),
                  {"timeouts row 2 is 3"});
  expect_contains(error_after([](Hdf5Writer& writer) {
                    writer.remove("actions");
                    writer.flags("actions", {4, 1}, {0, 0, 0, 0});
                  }),
                  {"actions must be float32 or float64, got int8"});
}

TEST_F(DiskStores, RangesAreChecked) {
  const auto store = open_dataset(kData + "/d4rl_tiny.hdf5", "auto", on_disk());
  EXPECT_THROW(rows_of(*store, 8, 3), std::out_of_range);
  EXPECT_THROW(store->read(-1, 1, nullptr, nullptr, nullptr, nullptr), std::out_of_range);
  EXPECT_THROW(store->episode(3), std::out_of_range);
}

// With mmap() this would be SIGBUS.
TEST_F(DiskStores, AFileThatIsCutOffMeanwhile) {
  {
    Hdf5Writer writer(path_);
    writer.good_fields();
  }
  const auto store = open_dataset(path_, "auto", on_disk());
  std::filesystem::resize_file(path_, 100);
  expect_contains(message_of<DataError>([&] { rows_of(*store, 0, 4); }),
                  {path_, "has become shorter since it was opened"});
}

TEST_F(DiskStores, NoPlaceForScratchFiles) {
  std::ofstream(folder_.file("scratch")) << "a file";
  expect_contains(
      message_of<DataError>([&] { open_dataset(kData + "/d4rl_tiny.hdf5", "auto", on_disk()); }),
      {folder_.file("scratch"), "no scratch file", "DMAMBA_DATA"});
}

TEST_F(DiskStores, ProgressReachesTheEndAndMayThrow) {
  Storage storage = on_disk();
  std::int64_t last = 0, whole = 0;
  storage.progress = [&](std::int64_t done, std::int64_t total) {
    EXPECT_GT(done, last);
    last = done;
    whole = total;
  };
  open_dataset(kData + "/d4rl_tiny.hdf5", "auto", storage);
  EXPECT_EQ(last, 12 * (2 + 3 + 1) * 4);
  EXPECT_EQ(whole, last);
  const std::size_t before = open_files();
  storage.progress = [](std::int64_t, std::int64_t) { throw std::domain_error("stop"); };
  EXPECT_THROW(open_dataset(kData + "/d4rl_tiny.hdf5", "auto", storage), std::domain_error);
  EXPECT_EQ(open_files(), before);
}

}  // namespace
}  // namespace dmamba::data
