// The cache of converted recordings: what is reused, what is made anew, and what a failure leaves.
#include <fcntl.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <filesystem>
#include <thread>
#include <vector>

#include "dmamba/common/error.h"
#include "replay_support.h"

namespace dmamba::data {
namespace {

namespace fs = std::filesystem;

using testing::ends_of;
using testing::expect_contains;
using testing::Hdf5Writer;
using testing::marks_of;
using testing::message_of;
using testing::read_bytes;
using testing::Rows;
using testing::shard_path;
using testing::TemporaryFolder;
using testing::two_episodes;
using testing::write_bytes;
using testing::write_shard;

using Ints = std::vector<int>;

class ReplayCache : public ::testing::Test {
 protected:
  ReplayCache() {
    Rows rows = two_episodes();
    rows.padding().episode(60, 2, false);
    write_shard(recording(), 0, rows);
    write_shard(recording(), 3, Rows().padding().episode(30, 4));
  }

  std::string recording() const { return folder_.file("Pong/1/replay_logs"); }
  std::string cache() const { return folder_.file("cache/replay"); }
  std::shared_ptr<FrameStore> open(const ReplaySelection& selection = {}) const {
    return open_replay(recording(), selection, {cache()});
  }
  std::vector<std::string> files() const {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(cache())) names.push_back(entry.path());
    std::sort(names.begin(), names.end());
    return names;
  }

  // Fills the observations with rubbish that stat cannot tell from them.
  void spoil_the_shards() const {
    for (const int shard : {0, 3}) {
      for (const char* field : {"observation", "action", "reward", "terminal"}) {
        const std::string path = shard_path(recording(), field, shard);
        const auto time = fs::last_write_time(path);
        write_bytes(path, std::string(fs::file_size(path), '?'));
        fs::last_write_time(path, time);
      }
    }
  }

  void expect_the_recording(const FrameStore& store) const {
    EXPECT_EQ(marks_of(store), (Ints{10, 11, 12, 20, 21, 30, 31, 32, 33}));
    EXPECT_EQ(ends_of(store), (std::vector<std::int64_t>{3, 5, 9}));
    EXPECT_EQ((Ints(store.actions().begin(), store.actions().end())),
              (Ints{1, 2, 1, 1, 2, 1, 2, 1, 2}));
    EXPECT_EQ(store.episode(2).ret, 4.0);
    EXPECT_TRUE(store.episode(2).terminated);
    EXPECT_EQ(store.dropped_transitions(), 2);
    EXPECT_EQ(store.metadata(), (Metadata{{"game", "Pong"}, {"shards", "0, 3"}}));
  }

  TemporaryFolder folder_;
};

TEST_F(ReplayCache, TheFirstStartConverts) {
  const auto store = open();
  expect_the_recording(*store);
  EXPECT_EQ(store->name(), recording());
  ASSERT_EQ(files().size(), 1u);
  const std::string name = fs::path(files().front()).filename();
  ASSERT_EQ(name.size(), std::string("Pong-0123456789abcdef.h5").size());
  EXPECT_EQ(name.substr(0, 5), "Pong-");
  EXPECT_EQ(name.substr(5, 16).find_first_not_of("0123456789abcdef"), std::string::npos);
}

TEST_F(ReplayCache, TheSecondStartReadsNoShard) {
  open();
  spoil_the_shards();
  int calls = 0;
  expect_the_recording(*open_replay(recording(), {}, {cache()}, [&](auto, auto) { ++calls; }));
  EXPECT_EQ(calls, 0);
  EXPECT_THROW(open_replay(recording(), {}), DataError);  // they are spoilt indeed
}

TEST_F(ReplayCache, ALockThatWasLeftBehindGoes) {
  open();
  const auto kept = ends_of(*open());
  const std::string lock = files().at(0) + ".lock";
  const int held = ::open(lock.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  ASSERT_EQ(::flock(held, LOCK_EX), 0);
  EXPECT_EQ(ends_of(*open()), kept);
  EXPECT_TRUE(fs::exists(lock)) << "somebody has it";
  ::close(held);
  EXPECT_EQ(ends_of(*open()), kept);
  EXPECT_FALSE(fs::exists(lock));
}

TEST_F(ReplayCache, AChangedRecordingIsConvertedAgain) {
  open();
  write_shard(recording(), 3, Rows().padding().episode(40, 4));
  const std::string path = shard_path(recording(), "observation", 3);
  // The same size, another time.
  fs::last_write_time(path, fs::last_write_time(path) + std::chrono::nanoseconds(1000));
  EXPECT_EQ(marks_of(*open()).back(), 43);
  EXPECT_EQ(files().size(), 2u);
  for (const char* field : {"observation", "action", "reward", "terminal"}) {
    fs::copy_file(shard_path(recording(), field, 3), shard_path(recording(), field, 4));
  }
  EXPECT_EQ(marks_of(*open()).size(), 13u);
  EXPECT_EQ(files().size(), 3u);
}

TEST_F(ReplayCache, EverySelectionHasItsFile) {
  EXPECT_EQ(open()->num_transitions(), 9);
  EXPECT_EQ(open({.buffers = 1})->num_transitions(), 4);
  EXPECT_EQ(files().size(), 2u);
  const ReplaySelection some{.trajectories_per_buffer = 1, .transitions = 4, .seed = 1};
  const auto expected = marks_of(*open_replay(recording(), some));
  EXPECT_EQ(marks_of(*open(some)), expected);
  EXPECT_EQ(files().size(), 3u);
  spoil_the_shards();
  EXPECT_EQ(marks_of(*open(some)), expected);
  // Where all is read, the order of visits does not matter.
  expect_the_recording(*open({.trajectories_per_buffer = 1, .seed = 9}));
  EXPECT_EQ(files().size(), 3u);
}

TEST_F(ReplayCache, AConvertedFileOpensByItself) {
  open();
  fs::remove_all(folder_.file("Pong"));
  const std::string file = files().front();
  expect_the_recording(*open_replay(file, {}));
  expect_the_recording(*open_replay(file, {.seed = 3, .game = "PONG"}));
  EXPECT_EQ(open_replay(file, {})->name(), file);
  expect_contains(message_of<DataError>([&] { open_replay(file, {.transitions = 5}); }),
                  {"nothing can be selected", "transitions"});
  expect_contains(message_of<DataError>([&] { open_replay(file, {.game = "Breakout"}); }),
                  {"a recording of 'Pong', not of 'Breakout'"});
}

TEST_F(ReplayCache, AMappedStoreOutlivesItsFile) {
  const auto store = open();
  fs::remove_all(cache());
  expect_the_recording(*store);
}

TEST_F(ReplayCache, DamagedFilesAreMadeAnew) {
  open();
  const std::string file = files().front();
  const std::string good = read_bytes(file);
  const auto expect_rebuilt = [&](const std::string& bytes) {
    write_bytes(file, bytes);
    expect_the_recording(*open());
    EXPECT_EQ(files(), std::vector<std::string>{file});
    EXPECT_EQ(read_bytes(file).size(), good.size());
  };
  expect_rebuilt("");
  expect_rebuilt("not HDF5");
  for (std::size_t size = 8; size < good.size(); size += 1 + size / 3) {
    SCOPED_TRACE(size);
    write_bytes(file, good.substr(0, size));
    const std::string message = message_of<DataError>([&] { open_replay(file, {}); });
    if (size >= 36) expect_contains(message, {"truncated: it has " + std::to_string(size) + " of"});
    expect_rebuilt(good.substr(0, size));
  }
}

TEST_F(ReplayCache, DamagedBytesNeverDoWorseThanThrow) {
  open();
  const std::string file = files().front();
  const std::string good = read_bytes(file);
  const std::string frames(kFrameBytes, static_cast<char>(10));
  const std::size_t begin = good.find(frames);
  ASSERT_NE(begin, std::string::npos);
  int thrown = 0;
  for (std::size_t at = 0; at < good.size(); at += 41) {
    if (at >= begin && at < begin + 9 * kFrameBytes) continue;
    std::string bad = good;
    bad[at] ^= static_cast<char>(0x55);
    write_bytes(file, bad);
    try {
      const auto store = open_replay(file, {});
      std::int64_t sum = 0;
      for (const std::uint8_t grey : store->frames()) sum += grey;
      EXPECT_GT(sum, 0);
    } catch (const DataError&) {
      ++thrown;
    }
  }
  EXPECT_GT(thrown, 10);
}

TEST_F(ReplayCache, ForeignFilesAreNoConversions) {
  const std::string d4rl = folder_.file("d4rl.h5");
  Hdf5Writer(d4rl).good_fields();
  expect_contains(message_of<DataError>([&] { open_replay(d4rl, {}); }),
                  {"no converted recording: it has no dataset 'frames'"});
  // The conversion of another recording under this one's name is not taken for it.
  open({.buffers = 1});
  const std::string other = files().front();
  open();
  for (const std::string& file : files()) {
    if (file != other) fs::copy_file(other, file, fs::copy_options::overwrite_existing);
  }
  expect_the_recording(*open());
}

TEST_F(ReplayCache, PartsThatContradictEachOther) {
  open();
  const std::string file = files().front();
  const auto error_of = [&](const std::function<void(hid_t)>& spoil) {
    const std::string copy = folder_.file("copy.h5");
    fs::copy_file(file, copy, fs::copy_options::overwrite_existing);
    const hid_t id = H5Fopen(copy.c_str(), H5F_ACC_RDWR, H5P_DEFAULT);
    spoil(id);
    H5Fclose(id);
    return message_of<DataError>([&] { open_replay(copy, {}); });
  };
  const auto replace = [](hid_t id, const char* name, std::vector<hsize_t> shape, hid_t type) {
    H5Ldelete(id, name, H5P_DEFAULT);
    const hid_t space = H5Screate_simple(static_cast<int>(shape.size()), shape.data(), nullptr);
    const hid_t set = H5Dcreate2(id, name, type, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
    std::vector<std::uint8_t> zeros(10 * 84 * 84 * 8);
    H5Dwrite(set, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, zeros.data());
    H5Dclose(set);
    H5Sclose(space);
  };
  expect_contains(error_of([&](hid_t id) { replace(id, "frames", {8, 84, 84}, H5T_STD_U8LE); }),
                  {"actions has 9 rows, but frames 8"});
  expect_contains(error_of([&](hid_t id) { replace(id, "frames", {9, 84, 83}, H5T_STD_U8LE); }),
                  {"dataset 'frames' of shape (9, 84, 83)"});
  expect_contains(error_of([&](hid_t id) { replace(id, "frames", {9, 84, 84}, H5T_STD_I8LE); }),
                  {"'frames'", "type int8"});
  expect_contains(error_of([&](hid_t id) { replace(id, "actions", {9}, H5T_STD_I64LE); }),
                  {"'actions'", "type int64"});
  expect_contains(error_of([&](hid_t id) { replace(id, "episode_ends", {3}, H5T_STD_I64LE); }),
                  {"episode_ends[0] is 0"});
  expect_contains(error_of([&](hid_t id) { H5Ldelete(id, "rewards", H5P_DEFAULT); }),
                  {"no dataset 'rewards'"});
  expect_contains(error_of([&](hid_t id) { H5Ldelete(id, "conversion/version", H5P_DEFAULT); }),
                  {"'conversion/version' is missing"});
  expect_contains(error_of([&](hid_t id) {
                    H5Ldelete(id, "conversion/version", H5P_DEFAULT);
                    const hid_t space = H5Screate(H5S_SCALAR);
                    const hid_t set = H5Dcreate2(id, "conversion/version", H5T_STD_I32LE, space,
                                                 H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
                    const int value = 2;
                    H5Dwrite(set, H5T_NATIVE_INT, H5S_ALL, H5S_ALL, H5P_DEFAULT, &value);
                    H5Dclose(set);
                    H5Sclose(space);
                  }),
                  {"format version 2", "knows version 1"});
}

TEST_F(ReplayCache, AFailureLeavesNothingBehind) {
  const std::string path = shard_path(recording(), "observation", 3);
  const std::string good = read_bytes(path);
  std::string bad = good;
  bad[bad.size() - 8] ^= 1;  // of the checksum: found once all is converted
  write_bytes(path, bad);
  EXPECT_THROW(open(), DataError);
  EXPECT_TRUE(files().empty());
  write_bytes(path, good);
  struct Stop {};
  EXPECT_THROW(open_replay(recording(), {}, {cache()}, [](auto, auto) { throw Stop{}; }), Stop);
  EXPECT_TRUE(!fs::exists(cache()) || files().empty());
}

TEST_F(ReplayCache, FramesThatContradictThePlanAreConvertedOnceMore) {
  // All episodes begin with rows that only their frames tell from padding.
  Rows rows;
  for (const int first : {10, 20}) {
    rows.add(first, 0, 0.0f).add(first + 1, 0, 0.0f).add(first + 2, 0, 0.0f).episode(first + 3, 1);
  }
  write_shard(recording(), 0, rows);
  write_shard(recording(), 3, Rows().padding().episode(30, 1));
  EXPECT_EQ(marks_of(*open()), (Ints{10, 11, 12, 13, 20, 21, 22, 23, 30}));
  EXPECT_EQ(files().size(), 1u);
}

TEST_F(ReplayCache, AFullDiskIsAnErrorAndLeavesNothing) {
  // A limit on the size of files stands for it; writing beyond fails with EFBIG.
  rlimit saved{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &saved), 0);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  for (const rlim_t most : {rlim_t{100}, rlim_t{5 * 7056}}) {
    const rlimit limit{most, saved.rlim_max};
    ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
    const std::string message = message_of<DataError>([&] { open(); });
    ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &saved), 0);
    expect_contains(message, {cache() + "/Pong-", "cannot be written", "make room there"});
    EXPECT_TRUE(files().empty());
  }
  std::signal(SIGXFSZ, handler);
  expect_the_recording(*open());
}

TEST_F(ReplayCache, AFolderThatCannotBe) {
  write_bytes(folder_.file("taken"), "a file");
  expect_contains(
      message_of<DataError>([&] { open_replay(recording(), {}, {folder_.file("taken/cache")}); }),
      {"taken/cache", "its folder cannot be made"});
}

TEST_F(ReplayCache, ConversionsAtOnceDoNotHurtEachOther) {
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([this] { expect_the_recording(*open()); });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(files().size(), 1u);
  spoil_the_shards();
  expect_the_recording(*open());
}

}  // namespace
}  // namespace dmamba::data
