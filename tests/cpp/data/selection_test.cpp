// A share of the episodes: which are drawn, and what the store of them holds.
#include "dmamba/data/selection.h"

#include <map>

#include "dmamba/common/error.h"
#include "tests/cpp/data/test_support.h"

namespace dmamba::data {
namespace {

using testing::make_arrays;

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

TEST(KeepEpisodes, HoldsThoseEpisodesAsTheyWere) {
  const std::vector<std::int64_t> lengths{3, 1, 4, 2};
  const auto whole = MemoryStore::create(make_arrays(lengths, 2), "numbers", {{"k", "v"}});
  const auto some = keep_episodes(*whole, {1, 2});
  EXPECT_EQ(some->name(), "numbers");
  EXPECT_EQ(some->metadata(), whole->metadata());
  EXPECT_EQ(some->num_transitions(), 5);
  EXPECT_EQ(some->dropped_transitions(), 0);
  ASSERT_EQ(some->num_episodes(), 2);
  for (std::int64_t i = 0; i < 2; ++i) {
    const Episode kept = some->episode(i), old = whole->episode(i + 1);
    EXPECT_EQ(kept.length, old.length);
    EXPECT_EQ(kept.ret, old.ret);
    EXPECT_EQ(kept.terminated, old.terminated);
    std::vector<float> mine(kept.length * 2), theirs(mine.size()), a(kept.length), b(kept.length),
        r(kept.length), s(kept.length), g(kept.length), h(kept.length);
    some->read(kept.start, kept.length, mine.data(), a.data(), r.data(), g.data());
    whole->read(old.start, old.length, theirs.data(), b.data(), s.data(), h.data());
    EXPECT_EQ(mine, theirs);
    EXPECT_EQ(a, b);
    EXPECT_EQ(r, s);
    EXPECT_EQ(g, h);
  }
}

TEST(KeepEpisodes, NoneAndUnknownOnesAreErrors) {
  const auto whole = store_of(2);
  EXPECT_THROW(keep_episodes(*whole, {}), DataError);
  EXPECT_THROW(keep_episodes(*whole, {2}), std::out_of_range);
}

}  // namespace
}  // namespace dmamba::data
