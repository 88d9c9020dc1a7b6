// FrameStore: episodes, returns, statistics, and the errors of parts that contradict each other.
#include "dmamba/data/frame_store.h"

#include <cmath>
#include <functional>
#include <limits>
#include <stdexcept>

#include "dmamba/common/error.h"
#include "dmamba/data/statistics.h"
#include "test_support.h"

namespace dmamba::data {
namespace {

using testing::expect_contains;
using testing::message_of;

FrameStore::Frames make_frames(std::int64_t rows) {
  auto bytes = std::make_shared<std::vector<std::uint8_t>>(rows * kFrameBytes);
  for (std::size_t i = 0; i < bytes->size(); ++i) (*bytes)[i] = i / kFrameBytes + 1;
  return {bytes, bytes->data()};
}

// An episode of 3, terminated, and one of 2, cut off.
FrameStore::Columns make_columns() {
  return {.actions = {0, 3, 1, 2, 0},
          .rewards = {1, 0, -1, 0.5f, 1},
          .episode_ends = {3, 5},
          .terminated = {1, 0},
          .dropped = 7};
}

std::string error_of(const std::function<void(FrameStore::Columns*)>& spoil) {
  FrameStore::Columns columns = make_columns();
  spoil(&columns);
  return message_of<DataError>(
      [&] { FrameStore::create(make_frames(5), std::move(columns), "game"); });
}

TEST(FrameStore, KeepsWhatItIsGiven) {
  const auto store = FrameStore::create(make_frames(5), make_columns(), "game", {{"game", "Pong"}});
  EXPECT_EQ(store->name(), "game");
  EXPECT_EQ(store->metadata().at("game"), "Pong");
  EXPECT_EQ(store->num_transitions(), 5);
  EXPECT_EQ(store->num_episodes(), 2);
  EXPECT_EQ(store->num_actions(), 4);
  EXPECT_EQ(store->dropped_transitions(), 7);
  EXPECT_EQ(store->frames().size(), 5u * 84 * 84);
  EXPECT_EQ(store->frames()[3 * kFrameBytes - 1], 3);
  EXPECT_EQ(store->actions()[1], 3);
  EXPECT_EQ(store->rewards()[2], -1);
  const float rtg[] = {0, -1, -1, 1.5f, 1};
  EXPECT_TRUE(std::equal(store->returns_to_go().begin(), store->returns_to_go().end(), rtg));
}

TEST(FrameStore, Episodes) {
  const auto store = FrameStore::create(make_frames(5), make_columns(), "game");
  const Episode first = store->episode(0);
  const Episode second = store->episode(1);
  EXPECT_EQ(first.start, 0);
  EXPECT_EQ(first.length, 3);
  EXPECT_EQ(first.ret, 0.0);
  EXPECT_TRUE(first.terminated);
  EXPECT_EQ(second.start, 3);
  EXPECT_EQ(second.length, 2);
  EXPECT_EQ(second.ret, 1.5);
  EXPECT_FALSE(second.terminated);
  EXPECT_THROW(store->episode(2), std::out_of_range);
  EXPECT_THROW(store->episode(-1), std::out_of_range);
}

TEST(FrameStore, IsSummarisedAsAnyStore) {
  const Summary summary = summarize(*FrameStore::create(make_frames(5), make_columns(), "game"));
  EXPECT_EQ(summary.episodes, 2);
  EXPECT_EQ(summary.transitions, 5);
  EXPECT_EQ(summary.dropped, 7);
  EXPECT_EQ(summary.terminated, 1);
  EXPECT_EQ(summary.truncated, 1);
  EXPECT_EQ(summary.length_min, 2);
  EXPECT_EQ(summary.length_max, 3);
  EXPECT_EQ(summary.return_mean, 0.75);
}

TEST(FrameStore, KeepsTheFramesAlive) {
  auto frames = make_frames(5);
  const std::weak_ptr<const void> owner = frames.owner;
  auto store = FrameStore::create(std::move(frames), make_columns(), "game");
  EXPECT_FALSE(owner.expired());
  store.reset();
  EXPECT_TRUE(owner.expired());
}

TEST(FrameStore, ErrorsNameFieldAndNumbers) {
  using Columns = FrameStore::Columns;
  expect_contains(error_of([](Columns* c) { c->actions.pop_back(); }),
                  {"game: ", "actions 4", "rewards 5"});
  expect_contains(error_of([](Columns* c) { *c = {}; }), {"game: the dataset is empty"});
  expect_contains(error_of([](Columns* c) { c->actions[2] = -1; }),
                  {"game: actions row 2 is -1", "0 to 17"});
  expect_contains(error_of([](Columns* c) { c->actions[4] = 18; }), {"actions row 4 is 18"});
  expect_contains(error_of([](Columns* c) { c->rewards[1] = NAN; }),
                  {"game: rewards row 1 is NaN"});
  expect_contains(error_of([](Columns* c) { c->rewards[0] = -INFINITY; }),
                  {"rewards row 0 is infinite"});
  expect_contains(error_of([](Columns* c) { c->episode_ends[0] = 0; }),
                  {"game: episode_ends[0] is 0", "above 0"});
  expect_contains(error_of([](Columns* c) { c->episode_ends[0] = 5; }),
                  {"episode_ends[1] is 5", "above 5"});
  expect_contains(error_of([](Columns* c) { c->episode_ends[1] = 6; }),
                  {"episode_ends[1] is 6", "5 transitions"});
  expect_contains(error_of([](Columns* c) { c->episode_ends[1] = 4; }),
                  {"the last episode ends at 4 of 5"});
  expect_contains(error_of([](Columns* c) { c->episode_ends.clear(); }), {"ends at 0 of 5"});
  expect_contains(error_of([](Columns* c) { c->terminated.pop_back(); }),
                  {"terminated has 1 entries", "2 episodes"});
  expect_contains(error_of([](Columns* c) { c->dropped = -1; }), {"negative, -1"});
  expect_contains(error_of([](Columns* c) {
                    c->rewards[3] = c->rewards[4] = std::numeric_limits<float>::max();
                  }),
                  {"return-to-go at row 3 leaves"});
  expect_contains(message_of<DataError>([] { FrameStore::create({}, make_columns(), "game"); }),
                  {"game: there are no frames"});
}

TEST(FrameStore, TheLastActionIsStillOne) {
  FrameStore::Columns columns = make_columns();
  columns.actions[0] = 17;
  EXPECT_EQ(FrameStore::create(make_frames(5), std::move(columns), "game")->num_actions(), 18);
}

}  // namespace
}  // namespace dmamba::data
