// Choosing a reader, the D4RL reader on good files, and on files that are no dataset at all.
#include "dmamba/data/reader.h"

#include <sys/stat.h>

#include <fstream>
#include <thread>

#include "dmamba/common/error.h"
#include "test_support.h"

namespace dmamba::data {
namespace {

using testing::expect_contains;
using testing::Hdf5Writer;
using testing::message_of;
using testing::TemporaryFolder;

const std::string kData = DMAMBA_TEST_DATA;

std::string open_error(const std::string& path, const std::string& format = "auto") {
  return message_of<DataError>([&] { open_dataset(path, format); });
}

// What tests/data/make_fixtures.py puts into both fixtures.
void expect_fixture(const TrajectoryStore& store) {
  ASSERT_EQ(store.state_dim(), 2);
  ASSERT_EQ(store.act_dim(), 3);
  ASSERT_EQ(store.num_transitions(), 10);
  ASSERT_EQ(store.num_episodes(), 3);
  EXPECT_EQ(store.dropped_transitions(), 2);
  const std::int64_t starts[] = {0, 3, 8};
  const std::int64_t lengths[] = {3, 5, 2};
  const double returns[] = {4.5, 27.5, 18.0};
  for (int i = 0; i < 3; ++i) {
    const Episode episode = store.episode(i);
    EXPECT_EQ(episode.start, starts[i]);
    EXPECT_EQ(episode.length, lengths[i]);
    EXPECT_EQ(episode.ret, returns[i]);
    EXPECT_EQ(episode.terminated, i != 1);
  }
  std::vector<float> states(20), actions(30), rewards(10), rtg(10);
  store.read(0, 10, states.data(), actions.data(), rewards.data(), rtg.data());
  for (int row = 0; row < 10; ++row) {
    EXPECT_EQ(states[2 * row], row);
    EXPECT_EQ(states[2 * row + 1], row + 0.25);
    EXPECT_EQ(actions[3 * row], -row);
    EXPECT_EQ(actions[3 * row + 2], -row - 0.5);
    EXPECT_EQ(rewards[row], row + 0.5);
  }
  EXPECT_EQ(rtg[0], 4.5);
  EXPECT_EQ(rtg[6], 6.5 + 7.5);
  EXPECT_EQ(rtg[9], 9.5);
}

TEST(OpenDataset, CompressedFloat32WithBools) {
  const auto store = open_dataset(kData + "/d4rl_tiny.hdf5");
  expect_fixture(*store);
  EXPECT_EQ(store->name(), kData + "/d4rl_tiny.hdf5");
  const Metadata expected = {{"algorithm", "SAC"}, {"environment", "Tiny-v0"}, {"iteration", "7"}};
  EXPECT_EQ(store->metadata(), expected);
}

TEST(OpenDataset, PlainFloat64WithByteFlags) {
  const auto store = open_dataset(kData + "/d4rl_wide.hdf5", "d4rl");
  expect_fixture(*store);
  EXPECT_TRUE(store->metadata().empty());
}

TEST(OpenDataset, BundledSample) {
  const std::string path = kData + "/../../data/samples/hopper-medium.hdf5";
  EXPECT_LE(std::filesystem::file_size(path), 4'000'000);
  const auto store = open_dataset(path);
  EXPECT_EQ(store->state_dim(), 11);
  EXPECT_EQ(store->act_dim(), 3);
  EXPECT_GT(store->num_episodes(), 200);
  EXPECT_EQ(store->dropped_transitions(), 0);
  EXPECT_EQ(store->metadata().at("environment"), "Hopper-v4");
  expect_contains(store->metadata().at("note"), {"random subset of episodes"});
}

TEST(OpenDataset, AfterAUserBlock) {
  const TemporaryFolder folder;
  const std::string path = folder.file("shifted.hdf5");
  {
    std::ofstream out(path, std::ios::binary);
    out << std::string(512, '#') << std::ifstream(kData + "/d4rl_tiny.hdf5").rdbuf();
  }
  expect_fixture(*open_dataset(path));
}

TEST(OpenDataset, FromSeveralThreads) {
  std::vector<std::int64_t> rows(8, 0);
  std::vector<std::thread> threads;
  for (std::int64_t& result : rows) {
    threads.emplace_back([&result] {
      for (int i = 0; i < 5; ++i) {
        result += open_dataset(kData + "/d4rl_tiny.hdf5")->num_transitions();
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  EXPECT_EQ(rows, std::vector<std::int64_t>(8, 50));
}

TEST(OpenDataset, Formats) {
  EXPECT_EQ(dataset_formats(), (std::vector<std::string>{"minari", "d4rl"}));
  expect_contains(
      message_of<ConfigError>([] { open_dataset(kData + "/d4rl_tiny.hdf5", "parquet"); }),
      {"unknown dataset format 'parquet'", "d4rl_tiny.hdf5", "auto, minari, d4rl"});
}

TEST(OpenDataset, HdfErrorsAreNotPrintedAndTheCallersPrinterStays) {
  H5E_auto2_t before = nullptr, after = nullptr;
  void* data = nullptr;
  H5Eget_auto2(H5E_DEFAULT, &before, &data);
  const TemporaryFolder folder;
  {
    Hdf5Writer(folder.file("a.hdf5")).group("observations");
  }
  ::testing::internal::CaptureStderr();
  open_error(folder.file("a.hdf5"));
  EXPECT_EQ(::testing::internal::GetCapturedStderr(), "");
  H5Eget_auto2(H5E_DEFAULT, &after, &data);
  EXPECT_NE(before, nullptr);
  EXPECT_EQ(before, after);
}

TEST(NotADataset, MissingFile) {
  for (const std::string format : {"auto", "d4rl"}) {
    expect_contains(open_error("/no/such/place.hdf5", format),
                    {"/no/such/place.hdf5: no such file"});
  }
}

TEST(NotADataset, Directory) {
  const TemporaryFolder folder;
  for (const std::string format : {"auto", "d4rl"}) {
    expect_contains(open_error(folder.file(""), format), {folder.file(""), "is a directory"});
  }
}

TEST(NotADataset, Pipe) {
  const TemporaryFolder folder;
  ASSERT_EQ(mkfifo(folder.file("pipe").c_str(), 0600), 0);
  expect_contains(open_error(folder.file("pipe")), {"pipe: is not a regular file"});
}

TEST(NotADataset, EmptyFile) {
  const TemporaryFolder folder;
  std::ofstream(folder.file("empty.hdf5")).flush();
  expect_contains(open_error(folder.file("empty.hdf5")), {"empty.hdf5", "empty (0 bytes)"});
}

TEST(NotADataset, OtherContent) {
  const TemporaryFolder folder;
  const std::string path = folder.file("page.hdf5");
  std::ofstream(path) << "<!DOCTYPE html>\n<html>404 not found</html>";
  expect_contains(open_error(path), {path, "no HDF5 file", "\"<!DOCTYPE html>.<html>4", "d4rl"});
  expect_contains(open_error(path, "d4rl"), {path, "not an HDF5 file", "<!DOCTYPE html>"});
}

}  // namespace
}  // namespace dmamba::data
