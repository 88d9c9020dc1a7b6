// State statistics and dataset figures against numbers worked out by hand.
#include "dmamba/data/statistics.h"

#include <cmath>

#include "test_support.h"

namespace dmamba::data {
namespace {

using testing::make_arrays;

TEST(StateStatistics, PopulationMeanAndStd) {
  const auto store = MemoryStore::create(make_arrays({3, 2}), "toy");  // first component: 0 to 4
  const StateStatistics statistics = state_statistics(*store);
  ASSERT_EQ(statistics.mean.size(), 2);
  EXPECT_FLOAT_EQ(statistics.mean[0], 2.0f);
  EXPECT_FLOAT_EQ(statistics.mean[1], 4.0f);
  EXPECT_FLOAT_EQ(statistics.std[0], static_cast<float>(std::sqrt(2.0) + 1e-6));
  EXPECT_FLOAT_EQ(statistics.std[1], static_cast<float>(2.0 * std::sqrt(2.0) + 1e-6));
}

TEST(StateStatistics, ConstantComponentHasAPositiveScale) {
  TransitionArrays arrays = make_arrays({4});
  for (std::size_t i = 1; i < arrays.observations.size(); i += 2) {
    arrays.observations[i] = 0.1f;
  }
  const StateStatistics statistics =
      state_statistics(*MemoryStore::create(std::move(arrays), "toy"));
  EXPECT_FLOAT_EQ(statistics.mean[1], 0.1f);
  EXPECT_FLOAT_EQ(statistics.std[1], 1e-6f);
}

TEST(StateStatistics, LargeOffsetAndSeveralBlocks) {
  // One pass (E[x^2] - E[x]^2) in float32 would lose all of this variance; 10,001 rows take 3
  // blocks.
  TransitionArrays arrays = make_arrays({10001});
  for (std::size_t row = 0; row < 10001; ++row) {
    arrays.observations[2 * row] = 100000.0f + static_cast<float>(row % 2);
  }
  const StateStatistics statistics =
      state_statistics(*MemoryStore::create(std::move(arrays), "toy"));
  EXPECT_NEAR(statistics.mean[0], 100000.5, 0.01);
  EXPECT_NEAR(statistics.std[0], 0.5, 1e-5);
  EXPECT_FLOAT_EQ(statistics.mean[1], 10000.0f);
}

TEST(StateStatistics, LeavesDroppedTransitionsOut) {
  const auto store = MemoryStore::create(make_arrays({3}, 100), "toy");
  EXPECT_FLOAT_EQ(state_statistics(*store).mean[0], 1.0f);
}

TEST(Summary, Figures) {
  // rewards are 1, 2, 3, ...: returns 6, 9, 6, 34
  const auto store = MemoryStore::create(make_arrays({3, 2, 1, 4}, 2), "toy");
  const Summary summary = summarize(*store);
  EXPECT_EQ(summary.episodes, 4);
  EXPECT_EQ(summary.transitions, 10);
  EXPECT_EQ(summary.dropped, 2);
  EXPECT_EQ(summary.terminated, 2);
  EXPECT_EQ(summary.truncated, 2);
  EXPECT_EQ(summary.length_min, 1);
  EXPECT_DOUBLE_EQ(summary.length_mean, 2.5);
  EXPECT_EQ(summary.length_max, 4);
  EXPECT_DOUBLE_EQ(summary.return_min, 6);
  EXPECT_DOUBLE_EQ(summary.return_mean, 13.75);
  EXPECT_DOUBLE_EQ(summary.return_max, 34);
  // (60.0625 + 22.5625 + 60.0625 + 410.0625) / 4
  EXPECT_DOUBLE_EQ(summary.return_std, std::sqrt(138.1875));
  // sorted 6, 6, 9, 34; position 0.9 * 3 = 2.7
  EXPECT_DOUBLE_EQ(summary.return_p90, 9 + 0.7 * 25);
}

TEST(Summary, OneEpisode) {
  const Summary summary = summarize(*MemoryStore::create(make_arrays({2}), "toy"));
  EXPECT_DOUBLE_EQ(summary.return_p90, 3);
  EXPECT_DOUBLE_EQ(summary.return_std, 0);
  EXPECT_EQ(summary.length_min, 2);
}

}  // namespace
}  // namespace dmamba::data
