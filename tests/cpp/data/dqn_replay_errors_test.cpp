// open_replay: every error names file, field and numbers; damaged files never do worse than throw.
#include <gtest/gtest.h>

#include <filesystem>
#include <functional>

#include "dmamba/common/error.h"
#include "replay_support.h"

namespace dmamba::data {
namespace {

using testing::as_bytes;
using testing::column;
using testing::expect_contains;
using testing::gzip;
using testing::message_of;
using testing::npy_header;
using testing::read_bytes;
using testing::Rows;
using testing::shard_path;
using testing::TemporaryFolder;
using testing::two_episodes;
using testing::write_bytes;
using testing::write_shard;

std::string error_of(const std::string& path, const ReplaySelection& selection = {}) {
  return message_of<DataError>([&] { open_replay(path, selection); });
}

// A recording of one shard, one file of which is then spoilt.
class DqnReplayErrors : public ::testing::Test {
 protected:
  DqnReplayErrors() { write_shard(folder_.file(""), 46, two_episodes()); }

  std::string file(const std::string& field) const {
    return shard_path(folder_.file(""), field, 46);
  }
  std::string error_with(const std::string& field, const std::string& bytes) {
    const std::string good = read_bytes(file(field));
    write_bytes(file(field), bytes);
    std::string message = error_of(folder_.file(""));
    EXPECT_NE(message.find("$store$_" + field + "_ckpt.46.gz"), std::string::npos) << message;
    write_bytes(file(field), good);
    return message;
  }

  TemporaryFolder folder_;
};

TEST_F(DqnReplayErrors, WrongPlaces) {
  expect_contains(error_of(folder_.file("nowhere")), {"nowhere: no such file or folder"});
  write_bytes(folder_.file("other/notes.txt"), "text");
  expect_contains(error_of(folder_.file("other")),
                  {"other: no recording in the DQN-replay layout", "<Game>/<run>/replay_logs",
                   "the folder has notes.txt"});
  std::filesystem::create_directory(folder_.file("empty"));
  expect_contains(error_of(folder_.file("empty")), {"the folder has nothing"});
  expect_contains(error_of(folder_.file("other/notes.txt")), {"notes.txt: not an HDF5 file"});
}

TEST_F(DqnReplayErrors, SeveralGamesOrRuns) {
  for (const char* place : {"all/Pong/1", "all/Breakout/1", "all/Breakout/2"}) {
    write_shard(folder_.file(std::string(place) + "/replay_logs"), 0, two_episodes());
  }
  expect_contains(error_of(folder_.file("all")), {"all: holds 2 games (Breakout, Pong)"});
  expect_contains(error_of(folder_.file("all"), {.game = "Qbert"}),
                  {"holds no game 'Qbert'", "Breakout, Pong"});
  expect_contains(error_of(folder_.file("all"), {.game = "breakout"}),
                  {"Breakout: holds 2 runs (1, 2)"});
  expect_contains(error_of(folder_.file("all/Pong"), {.game = "Breakout"}),
                  {"holds no game 'Breakout'", "folder of 'Pong'"});
  for (const char* place : {"all/Pong/1", "all/Pong/1/replay_logs"}) {
    expect_contains(error_of(folder_.file(place), {.game = "Breakout"}),
                    {"holds no game 'Breakout'", "call it 'Pong'"});
  }
}

TEST_F(DqnReplayErrors, AFolderThatNamesNoGameIsWhatItIsSaidToBe) {
  write_shard(folder_.file("mine/replay_logs"), 0, two_episodes());
  for (const char* place : {"mine", "mine/replay_logs"}) {
    EXPECT_EQ(open_replay(folder_.file(place), {.game = "Breakout"})->metadata().at("game"),
              "Breakout");
  }
}

TEST_F(DqnReplayErrors, AGameMayBeSpeltInSeveralWays) {
  write_shard(folder_.file("ms_pacman/1/replay_logs"), 0, two_episodes());
  for (const char* game : {"MsPacman", "ms_pacman", "ALE/MsPacman-v5"}) {
    EXPECT_EQ(open_replay(folder_.file("ms_pacman"), {.game = game})->num_episodes(), 2);
  }
}

TEST_F(DqnReplayErrors, MissingCompanions) {
  write_shard(folder_.file(""), 47, two_episodes());
  std::filesystem::remove(file("reward"));
  std::filesystem::remove(shard_path(folder_.file(""), "observation", 47));
  expect_contains(error_of(folder_.file("")),
                  {"incomplete shards: $store$_reward_ckpt.46.gz, $store$_observation_ckpt.47.gz"});
}

TEST_F(DqnReplayErrors, Selection) {
  expect_contains(error_of(folder_.file(""), {.buffers = 2}),
                  {"the last 2 shards", "there are 1 (46)", "at most 1"});
  for (const ReplaySelection& bad :
       {ReplaySelection{.buffers = -1}, ReplaySelection{.trajectories_per_buffer = -1},
        ReplaySelection{.transitions = -1}}) {
    expect_contains(message_of<ConfigError>([&] { open_replay(folder_.file(""), bad); }),
                    {"replay selection: ", "must be at least 0, got -1"});
  }
}

TEST_F(DqnReplayErrors, FieldsOfDifferentLength) {
  Rows longer = two_episodes();
  longer.episode(30, 2);
  write_bytes(file("action"), gzip(column("<i4", longer.actions)));
  expect_contains(error_of(folder_.file("")),
                  {"shard 46: the fields differ in length", "observation 11", "action 13",
                   "reward 11", "terminal 11"});
}

TEST_F(DqnReplayErrors, NothingLeft) {
  write_shard(folder_.file(""), 46, Rows().padding().episode(10, 4, false));
  expect_contains(error_of(folder_.file("")), {"no episode is whole in the 7 rows of shards 46"});
  write_shard(folder_.file(""), 46, Rows());
  expect_contains(error_of(folder_.file("")), {"shard 46: the dataset is empty"});
}

TEST_F(DqnReplayErrors, Values) {
  Rows rows = two_episodes();
  rows.actions[4] = 18;
  expect_contains(error_with("action", gzip(column("<i4", rows.actions))), {"row 4 is 18"});
  rows.actions[4] = -1;
  expect_contains(error_with("action", gzip(column("<i4", rows.actions))), {"row 4 is -1"});
  rows.rewards[7] = std::numeric_limits<float>::infinity();
  expect_contains(error_with("reward", gzip(column("<f4", rows.rewards))), {"row 7 is inf"});
  const std::vector<double> huge(11, 1e300);
  expect_contains(error_with("reward", gzip(column("<f8", huge))), {"row 0 is ", "float32"});
  rows.terminals[9] = 2;
  expect_contains(error_with("terminal", gzip(column("|u1", rows.terminals))), {"row 9 is 2"});
  rows.terminals[9] = 255;
  expect_contains(error_with("terminal", gzip(column("|i1", rows.terminals))), {"row 9 is 255"});
}

TEST_F(DqnReplayErrors, Headers) {
  const std::vector<std::int32_t> actions(11, 1);
  const std::string body = as_bytes(actions);
  const auto error = [&](const std::string& header) {
    return error_with("action", gzip(header + body));
  };
  const auto dictionary = [](const std::string& text) { return npy_header(text); };
  expect_contains(error_with("action", "plain text"), {"not a gzip file", "plain text"});
  expect_contains(error_with("action", ""), {"empty (0 bytes)"});
  expect_contains(error("NUMPY no magic..."), {"no .npy array"});
  expect_contains(error(npy_header("<i4", "(11,)", 4)), {".npy version 4.0"});
  std::string minor = npy_header("<i4", "(11,)");
  minor[7] = 1;
  expect_contains(error(minor), {".npy version 1.1"});
  expect_contains(error(npy_header(">i4", "(11,)")), {"dtype '>i4'", "<i4, <i8 or |u1"});
  expect_contains(error(npy_header("<f4", "(11,)")), {"dtype '<f4'"});
  expect_contains(error(npy_header("<i4", "(11, 1)")), {"shape (11, 1)", "must be (rows,)"});
  expect_contains(error(npy_header("<i4", "()")), {"shape ()"});
  expect_contains(error(npy_header("<i4", "(-1,)")), {"whole numbers"});
  expect_contains(error(npy_header("<i4", "(99999999999999999999,)")), {"whole numbers"});
  expect_contains(error(npy_header("<i4", "(11")), {"header cannot be used"});
  expect_contains(error(dictionary("{'descr': '<i4', 'fortran_order': True, 'shape': (11,), }")),
                  {"Fortran order"});
  expect_contains(error(dictionary("{'descr': '<i4', 'fortran_order': 0, 'shape': (11,), }")),
                  {"'fortran_order' is neither"});
  expect_contains(error(dictionary("{'descr': '<i4', 'shape': (11,), }")), {"is missing"});
  expect_contains(error(dictionary("{'descr': '<i4', 'descr': '<i4'}")), {"'descr' is unknown or"});
  expect_contains(error(dictionary("{'more': '<i4'}")), {"key 'more'"});
  expect_contains(error(dictionary("")), {"'{' is missing"});
  expect_contains(error(dictionary("{'descr': '<i4")), {"a string does not end"});
  expect_contains(error(dictionary("{'descr': '<i4', 'fortran_order': False, 'shape': (11,), } x")),
                  {"text follows"});
  std::string longest = npy_header("<i4", "(11,)", 2);
  longest[11] = '\x7f';
  expect_contains(error(longest), {"header claims 2130706", "more than the 10000"});
  expect_contains(
      error_with("observation", gzip(npy_header("|u1", "(11, 84, 83)") + two_episodes().frames())),
      {"shape (11, 84, 83)", "must be (rows, 84, 84)"});
}

TEST_F(DqnReplayErrors, ClaimsThatNoFileCanHold) {
  const auto frames = two_episodes().frames();
  expect_contains(
      error_with("observation", gzip(npy_header("|u1", "(9223372036854775807, 84, 84)") + frames)),
      {"claims 9223372036854775807 rows of 7056 bytes", "cannot hold as many"});
  const std::string bytes = gzip(npy_header("<i8", "(1000000000000,)"));
  expect_contains(error_with("action", bytes),
                  {"claims 1000000000000 rows of 8 bytes", std::to_string(bytes.size())});
}

TEST_F(DqnReplayErrors, MoreOrLessThanTheHeaderSays) {
  const Rows rows = two_episodes();
  std::vector<float> rewards = rows.rewards;
  rewards.push_back(0);
  expect_contains(error_with("reward", gzip(npy_header("<f4", "(11,)") + as_bytes(rewards))),
                  {"more data follow the 11 rows"});
  expect_contains(error_with("reward", gzip(npy_header("<f4", "(12,)") + as_bytes(rows.rewards))),
                  {"the data end early: it has 11 of 12 rows"});
  expect_contains(error_with("observation", gzip(npy_header("|u1", "(11, 84, 84)") +
                                                 rows.frames().substr(0, 7 * 7056 + 10))),
                  {"the data end early: it has 7 of 11 rows"});
}

TEST_F(DqnReplayErrors, TrailingGarbageAndChecksums) {
  for (const char* field : {"observation", "action", "reward", "terminal"}) {
    const std::string good = read_bytes(file(field));
    expect_contains(error_with(field, good + "garbage"),
                    {"follows the end of the gzip stream", "all of its 11 rows"});
    std::string crc = good;
    crc[crc.size() - 8] ^= 1;
    expect_contains(error_with(field, crc), {"damaged (incorrect data check)", "11 rows"});
    std::string length = good;
    length[length.size() - 1] ^= 1;
    expect_contains(error_with(field, length), {"damaged (incorrect length check)"});
    expect_contains(error_with(field, good.substr(0, good.size() - 1)), {"cut off"});
  }
}

TEST_F(DqnReplayErrors, TruncatedAnywhere) {
  for (const char* field : {"observation", "action", "reward", "terminal"}) {
    const std::string good = read_bytes(file(field));
    for (std::size_t size = 0; size < good.size(); size += 1 + size / 16) {
      SCOPED_TRACE(std::string(field) + " of " + std::to_string(size) + " bytes");
      error_with(field, good.substr(0, size));
    }
  }
}

TEST_F(DqnReplayErrors, TruncatedShardsTellTheRows) {
  // Stored, not compressed: the place of every row is known.
  Rows rows;
  rows.padding().episode(10, 90);
  write_shard(folder_.file(""), 46, rows);
  const std::string stored = gzip(npy_header("|u1", "(93, 84, 84)") + rows.frames(), 0);
  expect_contains(error_with("observation", stored.substr(0, 50 * 7056 + 4000)),
                  {"cut off: it has 50 of 93 rows"});
}

TEST_F(DqnReplayErrors, DamagedAnywhere) {
  // A flipped bit is found by deflate, by the header, by a value, or by the checksum at the end.
  // Nobody reads the gzip header's time and system (10 bytes), nor the bits that fill up the last
  // byte before the checksum.
  for (const char* field : {"observation", "action", "reward", "terminal"}) {
    const std::string good = read_bytes(file(field));
    for (std::size_t at = 10; at < good.size(); at += 3) {
      if (at + 9 == good.size()) continue;
      std::string bad = good;
      bad[at] ^= static_cast<char>(1 << at % 8);
      SCOPED_TRACE(std::string(field) + ", byte " + std::to_string(at));
      write_bytes(file(field), bad);
      EXPECT_THROW(open_replay(folder_.file(""), {}), DataError);
    }
    write_bytes(file(field), good);
  }
}

TEST_F(DqnReplayErrors, TheFirstShardsErrorIsTheOneThrown) {
  for (const int shard : {47, 48, 49}) write_shard(folder_.file(""), shard, two_episodes());
  for (const int shard : {49, 48, 47}) {
    const std::string path = shard_path(folder_.file(""), "observation", shard);
    write_bytes(path, read_bytes(path).substr(0, 80));
  }
  for (int i = 0; i < 20; ++i) expect_contains(error_of(folder_.file("")), {"observation_ckpt.47"});
}

}  // namespace
}  // namespace dmamba::data
