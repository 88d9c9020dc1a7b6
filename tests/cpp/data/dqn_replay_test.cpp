// open_replay: layouts, padding, beginnings and ends of shards, selection, types of columns.
#include <algorithm>
#include <filesystem>
#include <random>
#include <set>
#include <utility>

#include "data/readers/replay_selection.h"
#include "dmamba/common/error.h"
#include "dmamba/common/philox.h"
#include "replay_support.h"

namespace dmamba::data {
namespace {

using testing::column;
using testing::ends_of;
using testing::gzip;
using testing::marks_of;
using testing::npy_header;
using testing::Rows;
using testing::shard_path;
using testing::TemporaryFolder;
using testing::two_episodes;
using testing::write_bytes;
using testing::write_shard;

using Ints = std::vector<int>;
using Ends = std::vector<std::int64_t>;

TEST(DqnReplay, ReadsAShard) {
  const TemporaryFolder folder;
  Rows rows;
  rows.padding().add(1, 0, 0.0f).add(2, 5, -1.0f).add(3, 3, 1.0f, true).padding().episode(20, 2);
  write_shard(folder.file(""), 7, rows);
  const auto store = open_replay(folder.file(""), {.game = "Pong"});
  EXPECT_EQ(marks_of(*store), (Ints{1, 2, 3, 20, 21}));
  EXPECT_EQ(ends_of(*store), (Ends{3, 5}));
  EXPECT_EQ((std::vector<float>(store->rewards().begin(), store->rewards().end())),
            (std::vector<float>{0, -1, 1, 1, 1}));
  EXPECT_EQ((Ints(store->actions().begin(), store->actions().end())), (Ints{0, 5, 3, 1, 2}));
  EXPECT_EQ(store->num_actions(), 6);
  EXPECT_EQ(store->dropped_transitions(), 0);
  EXPECT_TRUE(store->episode(1).terminated);
  EXPECT_EQ(store->name(), folder.file(""));
  EXPECT_EQ(store->metadata(), (Metadata{{"game", "Pong"}, {"shards", "7"}}));
}

TEST(DqnReplay, EveryLayoutLeadsToTheShards) {
  const TemporaryFolder folder;
  const std::string logs = folder.file("atari/Breakout/1/replay_logs");
  write_shard(logs, 0, two_episodes());
  write_bytes(folder.file("atari/README"), "text");
  for (const char* path : {"atari", "atari/Breakout", "atari/Breakout/1",
                           "atari/Breakout/1/replay_logs", "atari/Breakout/1/replay_logs/"}) {
    const auto store = open_replay(folder.file(path), {});
    EXPECT_EQ(store->num_transitions(), 5) << path;
    EXPECT_EQ(store->metadata().at("game"), "Breakout") << path;
  }
}

TEST(DqnReplay, TheGameIsChosenWhateverItsCase) {
  const TemporaryFolder folder;
  write_shard(folder.file("Pong/1/replay_logs"), 0, Rows().padding().episode(5, 2));
  write_shard(folder.file("Breakout/1/replay_logs"), 0, two_episodes());
  const auto store = open_replay(folder.file(""), {.game = "pOnG"});
  EXPECT_EQ(store->num_transitions(), 2);
  EXPECT_EQ(store->metadata().at("game"), "Pong");
  EXPECT_EQ(open_replay(folder.file("Pong"), {.game = "pong"})->num_transitions(), 2);
}

TEST(DqnReplay, ShardsStandInTheOrderOfTheirNumbers) {
  const TemporaryFolder folder;
  write_shard(folder.file(""), 10, Rows().padding().episode(100, 2));
  write_shard(folder.file(""), 9, Rows().padding().episode(90, 1));
  write_shard(folder.file(""), 7, Rows().padding().episode(70, 3));
  EXPECT_EQ(marks_of(*open_replay(folder.file(""), {})), (Ints{70, 71, 72, 90, 100, 101}));
  EXPECT_EQ(open_replay(folder.file(""), {})->metadata().at("shards"), "7, 9-10");
  EXPECT_EQ(marks_of(*open_replay(folder.file(""), {.buffers = 2})), (Ints{90, 100, 101}));
}

TEST(DqnReplay, PartialEpisodesAreDroppedAndCounted) {
  const TemporaryFolder folder;
  // Begins in the midst of an episode (4 rows of it left), ends in the midst of another (2 rows).
  Rows rows;
  rows.episode(50, 4).padding().episode(10, 3).padding().episode(60, 2, false);
  write_shard(folder.file(""), 0, rows);
  const auto store = open_replay(folder.file(""), {});
  EXPECT_EQ(marks_of(*store), (Ints{10, 11, 12}));
  EXPECT_EQ(store->dropped_transitions(), 6);
}

TEST(DqnReplay, AShardThatBeginsMidwayMayStillBeginWithNoops) {
  const TemporaryFolder folder;
  Rows rows;
  rows.add(8, 0, 0.0f).add(9, 0, 0.0f).add(10, 0, 0.0f).add(11, 1, 0.0f, true);
  rows.padding().episode(20, 2);
  write_shard(folder.file(""), 0, rows);
  const auto store = open_replay(folder.file(""), {});
  EXPECT_EQ(marks_of(*store), (Ints{20, 21}));
  EXPECT_EQ(store->dropped_transitions(), 4);
}

TEST(DqnReplay, WithoutPaddingEveryShardBeginsWithAnEpisode) {
  const TemporaryFolder folder;
  write_shard(folder.file(""), 0, Rows().episode(10, 3).episode(20, 2).episode(30, 1));
  const auto store = open_replay(folder.file(""), {});
  EXPECT_EQ(marks_of(*store), (Ints{10, 11, 12, 20, 21, 30}));
  EXPECT_EQ(store->dropped_transitions(), 0);
}

TEST(DqnReplay, NoopsAtTheBeginningAreNoPadding) {
  const TemporaryFolder folder;
  // No padding at all, but each episode begins with three rows that only their frames tell from it.
  Rows rows;
  for (const int first : {10, 20, 30}) {
    rows.add(first, 0, 0.0f).add(first + 1, 0, 0.0f).add(first + 2, 0, 0.0f);
    rows.add(first + 3, 1, 1.0f, true);
  }
  write_shard(folder.file(""), 0, rows);
  const auto store = open_replay(folder.file(""), {});
  EXPECT_EQ(marks_of(*store), (Ints{10, 11, 12, 13, 20, 21, 22, 23, 30, 31, 32, 33}));
  EXPECT_EQ(store->dropped_transitions(), 0);
}

TEST(DqnReplay, NoopsAfterPaddingAreKept) {
  const TemporaryFolder folder;
  Rows rows;
  rows.padding().add(10, 0, 0.0f).add(11, 1, 0.0f, true);
  rows.padding().add(20, 0, 0.0f).add(21, 1, 0.0f, true);
  write_shard(folder.file(""), 0, rows);
  EXPECT_EQ(marks_of(*open_replay(folder.file(""), {})), (Ints{10, 11, 20, 21}));
}

TEST(DqnReplay, PaddingIsUpToThreeRows) {
  const TemporaryFolder folder;
  // One, two, three and four zero rows; the fourth is a transition. So is a black frame later on.
  Rows rows;
  rows.padding(1).add(9, 0, 0.0f).add(10, 1, 1.0f, true).padding(2).episode(20, 1);
  rows.padding(3).episode(30, 1).padding(4).add(0, 1, 0.0f).episode(40, 1);
  write_shard(folder.file(""), 0, rows);
  const auto store = open_replay(folder.file(""), {});
  EXPECT_EQ(marks_of(*store), (Ints{9, 10, 20, 30, 0, 0, 40}));
  EXPECT_EQ(ends_of(*store), (Ends{2, 3, 4, 7}));
}

TEST(DqnReplay, ZeroRowsWithActionRewardOrTerminalAreTransitions) {
  const TemporaryFolder folder;
  Rows rows;
  rows.padding().episode(10, 1).padding(1).add(0, 2, 0.0f).add(0, 0, 1.0f).add(0, 0, 0.0f, true);
  write_shard(folder.file(""), 0, rows);
  EXPECT_EQ(marks_of(*open_replay(folder.file(""), {})), (Ints{10, 0, 0, 0}));
}

// Episodes of any padding and any beginnings, against the rule said plainly.
TEST(DqnReplay, RandomShardsAgainstTheRule) {
  std::mt19937 random(3);
  const auto below = [&](int n) { return static_cast<int>(random() % n); };
  for (int trial = 0; trial < 40; ++trial) {
    const TemporaryFolder folder;
    Rows rows;
    const int most_padding = below(4);
    for (int episode = 0; episode < 6; ++episode) {
      rows.padding(below(2) == 0 ? most_padding : below(most_padding + 1));
      for (int noops = below(4); noops > 0; --noops) rows.add(1 + below(200), 0, 0.0f);
      if (episode < 5 || below(2) == 0) rows.episode(1 + below(200), 1 + below(3));
    }
    Ints expected;
    Ends ends;
    Ints piece;
    std::vector<Ints> pieces;
    std::vector<int> padding;
    bool leading = true;
    int zeros = 0;
    for (std::size_t row = 0; row < rows.marks.size(); ++row) {
      leading = leading && zeros < 3 && rows.marks[row] == 0 && rows.actions[row] == 0 &&
                rows.rewards[row] == 0.0f && rows.terminals[row] == 0;
      if (leading) {
        ++zeros;
      } else {
        piece.push_back(rows.marks[row]);
      }
      if (rows.terminals[row] != 0 || row + 1 == rows.marks.size()) {
        pieces.push_back(std::exchange(piece, {}));
        padding.push_back(std::exchange(zeros, 0));
        leading = true;
      }
    }
    if (rows.terminals.back() != 0) {
      pieces.emplace_back();
      padding.push_back(0);
    }
    const bool midway = padding.front() == 0 &&
                        std::any_of(padding.begin(), padding.end(), [](int p) { return p > 0; });
    for (std::size_t i = midway ? 1 : 0; i + 1 < pieces.size(); ++i) {
      expected.insert(expected.end(), pieces[i].begin(), pieces[i].end());
      ends.push_back(static_cast<std::int64_t>(expected.size()));
    }
    write_shard(folder.file(""), 0, rows);
    const auto store = open_replay(folder.file(""), {});
    EXPECT_EQ(marks_of(*store), expected) << "trial " << trial;
    EXPECT_EQ(ends_of(*store), ends) << "trial " << trial;
    EXPECT_EQ(
        store->dropped_transitions(),
        static_cast<std::int64_t>(pieces.back().size() + (midway ? pieces.front().size() : 0)))
        << "trial " << trial;
  }
}

TEST(DqnReplay, ColumnsOfOtherTypes) {
  const TemporaryFolder folder;
  const Rows rows = two_episodes();
  write_shard(folder.file(""), 0, rows);
  const auto reference = open_replay(folder.file(""), {});
  const std::vector<std::int64_t> actions64(rows.actions.begin(), rows.actions.end());
  const std::vector<std::uint8_t> actions8(rows.actions.begin(), rows.actions.end());
  const std::vector<double> rewards(rows.rewards.begin(), rows.rewards.end());
  const auto expect_same = [&](const char* field, const std::string& bytes) {
    SCOPED_TRACE(field);
    write_bytes(shard_path(folder.file(""), field, 0), gzip(bytes));
    const auto store = open_replay(folder.file(""), {});
    EXPECT_TRUE(std::equal(store->actions().begin(), store->actions().end(),
                           reference->actions().begin(), reference->actions().end()));
    EXPECT_TRUE(std::equal(store->rewards().begin(), store->rewards().end(),
                           reference->rewards().begin(), reference->rewards().end()));
    EXPECT_EQ(ends_of(*store), ends_of(*reference));
  };
  expect_same("action", column("<i8", actions64));
  expect_same("action", column("|u1", actions8, 2));
  expect_same("reward", column("<f8", rewards, 3));
  expect_same("terminal", column("|b1", rows.terminals));
  expect_same("terminal", column("|i1", rows.terminals));
}

TEST(DqnReplay, GzipMayHaveSeveralMembers) {
  const TemporaryFolder folder;
  const Rows rows = two_episodes();
  write_shard(folder.file(""), 0, rows);
  const std::string bytes = npy_header("|u1", "(11, 84, 84)") + rows.frames();
  std::string members;
  for (std::size_t at = 0; at < bytes.size(); at += 10001) members += gzip(bytes.substr(at, 10001));
  write_bytes(shard_path(folder.file(""), "observation", 0), members + gzip(""));
  EXPECT_EQ(marks_of(*open_replay(folder.file(""), {})), (Ints{10, 11, 12, 20, 21}));
}

TEST(ReplaySelection, WithoutALimitEverythingIsChosen) {
  EXPECT_EQ(choose_episodes({{5, 5}, {}, {1}}, {}), (Ends{2, 0, 1}));
  EXPECT_EQ(choose_episodes({{5, 5}, {1}}, {.trajectories_per_buffer = 1}), (Ends{2, 1}));
}

TEST(ReplaySelection, EndsWithTheEpisodeThatCompletesIt) {
  const std::vector<std::vector<std::int64_t>> one = {{10, 10, 10, 10}};
  EXPECT_EQ(choose_episodes(one, {.transitions = 1}), (Ends{1}));
  EXPECT_EQ(choose_episodes(one, {.transitions = 10}), (Ends{1}));
  EXPECT_EQ(choose_episodes(one, {.trajectories_per_buffer = 1, .transitions = 11}), (Ends{2}));
  EXPECT_EQ(choose_episodes(one, {.trajectories_per_buffer = 3, .transitions = 99}), (Ends{4}));
}

// The visits as create_dataset makes them, over a plain list of draws.
TEST(ReplaySelection, VisitsShardsInTheOrderThatTheSeedDraws) {
  const std::vector<std::vector<std::int64_t>> lengths = {std::vector<std::int64_t>(9, 3),
                                                          std::vector<std::int64_t>(2, 5),
                                                          std::vector<std::int64_t>(30, 2)};
  std::set<Ends> seen;
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    const ReplaySelection selection{.trajectories_per_buffer = 2, .transitions = 41, .seed = seed};
    Ends expected(3, 0);
    std::vector<int> left = {0, 1, 2};
    std::int64_t transitions = 0;
    for (std::uint64_t visit = 0; transitions < 41; ++visit) {
      const auto block = common::Philox{seed}(visit, 0, common::PhiloxPurpose::kVisit);
      const int shard = left[common::bounded(block.bits64(0), left.size())];
      const auto size = static_cast<std::int64_t>(lengths[shard].size());
      for (int i = 0; i < 2 && transitions < 41 && expected[shard] < size; ++i) {
        transitions += lengths[shard][expected[shard]++];
      }
      if (expected[shard] == size) std::erase(left, shard);
    }
    EXPECT_EQ(choose_episodes(lengths, selection), expected) << "seed " << seed;
    seen.insert(expected);
  }
  EXPECT_GT(seen.size(), 5u);
}

TEST(ReplaySelection, VisitsAreUniform) {
  const std::vector<std::vector<std::int64_t>> lengths(4, std::vector<std::int64_t>(1, 1));
  std::vector<double> counts(4);
  for (std::uint64_t seed = 0; seed < 4000; ++seed) {
    const Ends chosen = choose_episodes(lengths, {.transitions = 1, .seed = seed});
    for (int shard = 0; shard < 4; ++shard) counts[shard] += static_cast<double>(chosen[shard]);
  }
  double chi_square = 0;
  for (const double count : counts) chi_square += (count - 1000) * (count - 1000) / 1000;
  EXPECT_LT(chi_square, 16.3);  // 3 degrees of freedom, probability 0.999
}

TEST(DqnReplay, ReadsTheSelection) {
  const TemporaryFolder folder;
  for (const int shard : {0, 1}) {
    Rows rows;
    for (int i = 0; i < 5; ++i) rows.padding().episode(100 * shard + 10 * i + 1, 2);
    write_shard(folder.file(""), shard, rows);
  }
  const ReplaySelection selection{.trajectories_per_buffer = 1, .transitions = 9, .seed = 4};
  const auto chosen = choose_episodes({Ends(5, 2), Ends(5, 2)}, selection);
  ASSERT_EQ(chosen[0] + chosen[1], 5);
  Ints expected;
  for (const int shard : {0, 1}) {
    for (int i = 0; i < chosen[shard]; ++i) {
      expected.insert(expected.end(), {100 * shard + 10 * i + 1, 100 * shard + 10 * i + 2});
    }
  }
  EXPECT_EQ(marks_of(*open_replay(folder.file(""), selection)), expected);
}

TEST(DqnReplay, ReadsNoFurtherThanTheLastChosenRow) {
  const TemporaryFolder folder;
  const Rows rows = two_episodes();
  write_shard(folder.file(""), 0, rows);
  // Only the first episode is there; the second is cut off.
  const std::string path = shard_path(folder.file(""), "observation", 0);
  write_bytes(path, gzip(npy_header("|u1", "(11, 84, 84)") + rows.frames().substr(0, 6 * 7056)) +
                        gzip(std::string(100, 'x')));
  EXPECT_EQ(marks_of(*open_replay(folder.file(""), {.transitions = 3})), (Ints{10, 11, 12}));
  EXPECT_THROW(open_replay(folder.file(""), {}), DataError);
}

TEST(DqnReplay, ProgressReachesTheWholeAndMayEndTheReading) {
  const TemporaryFolder folder;
  write_shard(folder.file(""), 0, two_episodes());
  write_shard(folder.file(""), 1, two_episodes());
  std::int64_t size = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder.file(""))) {
    size += static_cast<std::int64_t>(entry.file_size());
  }
  std::vector<std::pair<std::int64_t, std::int64_t>> calls;
  open_replay(folder.file(""), {}, {},
              [&](auto done, auto total) { calls.push_back({done, total}); });
  ASSERT_FALSE(calls.empty());
  EXPECT_EQ(calls.back(), (std::pair{size, size}));
  EXPECT_TRUE(std::is_sorted(calls.begin(), calls.end()));
  struct Stop {};
  EXPECT_THROW(open_replay(folder.file(""), {}, {}, [](auto, auto) { throw Stop{}; }), Stop);
}

}  // namespace
}  // namespace dmamba::data
