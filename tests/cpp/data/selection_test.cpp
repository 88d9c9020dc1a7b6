// Stores made of another.
#include "dmamba/data/selection.h"

#include <map>
#include <stdexcept>

#include "dmamba/common/error.h"
#include "test_support.h"

namespace dmamba::data {
namespace {

using testing::make_arrays;
using testing::message_of;

struct Rows {
  explicit Rows(const TrajectoryStore& store)
      : states(store.num_transitions() * store.state_dim()),
        actions(store.num_transitions() * store.act_dim()),
        rewards(store.num_transitions()),
        rtg(store.num_transitions()) {
    store.read(0, store.num_transitions(), states.data(), actions.data(), rewards.data(),
               rtg.data());
  }
  std::vector<float> states, actions, rewards, rtg;
};

TEST(Selection, HasTheEpisodesInTheOrderGiven) {
  // Rows 0 to 2, 3 and 4, 5 to 9; the second ends by a timeout.
  const auto store = MemoryStore::create(make_arrays({3, 2, 5}, 1), "toy", {{"environment", "E"}});
  const auto chosen = select_episodes(*store, {1, 0});
  EXPECT_EQ(chosen->name(), "toy");
  EXPECT_EQ(chosen->metadata().at("environment"), "E");
  EXPECT_EQ(chosen->dropped_transitions(), 0);
  ASSERT_EQ(chosen->num_episodes(), 2);
  EXPECT_EQ(chosen->episode(0).length, 2);
  EXPECT_FALSE(chosen->episode(0).terminated);
  EXPECT_TRUE(chosen->episode(1).terminated);
  EXPECT_EQ(chosen->episode(1).start, 2);
  EXPECT_EQ(chosen->episode(1).ret, 1 + 2 + 3);
  const Rows rows(*chosen);
  EXPECT_EQ(rows.states, (std::vector<float>{3, 6, 4, 8, 0, 0, 1, 2, 2, 4}));
  EXPECT_EQ(rows.actions, (std::vector<float>{-3, -4, 0, -1, -2}));
  EXPECT_EQ(rows.rtg, (std::vector<float>{9, 5, 6, 5, 3}));
}

TEST(Selection, OfNothingOrOfWhatIsNotThereIsRefused) {
  const auto store = MemoryStore::create(make_arrays({3}), "toy");
  EXPECT_EQ(message_of<DataError>([&] { select_episodes(*store, {}); }),
            "toy: no episode is chosen");
  EXPECT_THROW(select_episodes(*store, {1}), std::out_of_range);
}

std::shared_ptr<MemoryStore> store_of(std::int64_t episodes) {
  return MemoryStore::create(make_arrays(std::vector<std::int64_t>(episodes, 2)), "numbers");
}

TEST(DrawEpisodes, CountIsRoundedAndNeverZero) {
  const auto store = store_of(10);
  EXPECT_EQ(draw_episodes(*store, 0.25, 0).size(), 3U);  // 2.5, away from zero
  EXPECT_EQ(draw_episodes(*store, 0.24, 0).size(), 2U);
  EXPECT_EQ(draw_episodes(*store, 0.001, 0).size(), 1U);
  const std::vector<std::int64_t> all{0, 1, 2, 3, 4, 5, 6, 7, 8, 9};
  EXPECT_EQ(draw_episodes(*store, 1.0, 5), all);
}

TEST(DrawEpisodes, AscendingWithoutRepetitionTheSameForASeed) {
  const auto store = store_of(129);
  const auto drawn = draw_episodes(*store, 0.5, 3);
  for (std::size_t i = 1; i < drawn.size(); ++i) EXPECT_LT(drawn[i - 1], drawn[i]);
  EXPECT_GE(drawn.front(), 0);
  EXPECT_LT(drawn.back(), 129);
  EXPECT_EQ(drawn, draw_episodes(*store, 0.5, 3));
  EXPECT_NE(drawn, draw_episodes(*store, 0.5, 4));
}

TEST(DrawEpisodes, EveryPairIsEquallyLikely) {
  const auto store = store_of(5);
  std::map<std::vector<std::int64_t>, int> counts;
  constexpr int kSeeds = 10000;
  for (int seed = 0; seed < kSeeds; ++seed) ++counts[draw_episodes(*store, 0.4, seed)];
  ASSERT_EQ(counts.size(), 10U);
  double chi_squared = 0;
  for (const auto& [pair, count] : counts) {
    chi_squared += (count - kSeeds / 10.0) * (count - kSeeds / 10.0) / (kSeeds / 10.0);
  }
  EXPECT_LT(chi_squared, 27.9);  // 9 degrees of freedom, one in a thousand
}

TEST(DelayedRewards, ComeWithTheLastStep) {
  const auto store = MemoryStore::create(make_arrays({3, 2}), "toy");
  const auto delayed = delay_rewards(*store);
  const Rows rows(*delayed), before(*store);
  EXPECT_EQ(rows.rewards, (std::vector<float>{0, 0, 6, 0, 9}));
  EXPECT_EQ(rows.rtg, (std::vector<float>{6, 6, 6, 9, 9}));
  EXPECT_EQ(rows.states, before.states);
  EXPECT_EQ(rows.actions, before.actions);
  for (int64_t i = 0; i < 2; ++i) {
    EXPECT_EQ(delayed->episode(i).length, store->episode(i).length);
    EXPECT_EQ(delayed->episode(i).terminated, store->episode(i).terminated);
    EXPECT_EQ(delayed->episode(i).ret, store->episode(i).ret);
  }
}

}  // namespace
}  // namespace dmamba::data
