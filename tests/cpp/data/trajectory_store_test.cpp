// MemoryStore: episodes, returns-to-go, bounds, and the wording of its errors.
#include "dmamba/data/trajectory_store.h"

#include <limits>
#include <stdexcept>

#include "dmamba/common/error.h"
#include "test_support.h"

namespace dmamba::data {
namespace {

using testing::expect_contains;
using testing::make_arrays;
using testing::message_of;

std::string create_error(TransitionArrays arrays) {
  return message_of<DataError>([&] { MemoryStore::create(std::move(arrays), "toy.hdf5"); });
}

TEST(MemoryStore, FindsEpisodesByTerminalOrTimeout) {
  const auto store =
      MemoryStore::create(make_arrays({3, 2, 1}), "toy", {{"environment", "Toy-v0"}});
  EXPECT_EQ(store->state_dim(), 2);
  EXPECT_EQ(store->act_dim(), 1);
  EXPECT_EQ(store->num_transitions(), 6);
  EXPECT_EQ(store->num_episodes(), 3);
  EXPECT_EQ(store->dropped_transitions(), 0);
  EXPECT_EQ(store->name(), "toy");
  EXPECT_EQ(store->metadata().at("environment"), "Toy-v0");
  const Episode second = store->episode(1);
  EXPECT_EQ(second.start, 3);
  EXPECT_EQ(second.length, 2);
  EXPECT_EQ(second.ret, 4 + 5);
  EXPECT_FALSE(second.terminated);
  EXPECT_TRUE(store->episode(0).terminated);
  EXPECT_TRUE(store->episode(2).terminated);
}

TEST(MemoryStore, TerminalAndTimeoutTogetherIsTerminated) {
  TransitionArrays arrays = make_arrays({2});
  arrays.timeouts[1] = 1;
  const auto store = MemoryStore::create(std::move(arrays), "toy");
  EXPECT_EQ(store->num_episodes(), 1);
  EXPECT_TRUE(store->episode(0).terminated);
}

TEST(MemoryStore, DropsAndCountsThePartialEpisode) {
  const auto store = MemoryStore::create(make_arrays({3, 2}, 4), "toy");
  EXPECT_EQ(store->num_transitions(), 5);
  EXPECT_EQ(store->num_episodes(), 2);
  EXPECT_EQ(store->dropped_transitions(), 4);
}

TEST(MemoryStore, ReadsAcrossEpisodesWithReturnsToGo) {
  const auto store = MemoryStore::create(make_arrays({3, 2}), "toy");
  std::vector<float> states(6), actions(3), rewards(3), rtg(3);
  store->read(1, 3, states.data(), actions.data(), rewards.data(), rtg.data());
  EXPECT_EQ(states, (std::vector<float>{1, 2, 2, 4, 3, 6}));
  EXPECT_EQ(actions, (std::vector<float>{-1, -2, -3}));
  EXPECT_EQ(rewards, (std::vector<float>{2, 3, 4}));
  EXPECT_EQ(rtg, (std::vector<float>{2 + 3, 3, 4 + 5}));
}

TEST(MemoryStore, NullFieldsAreNotRead) {
  const auto store = MemoryStore::create(make_arrays({3}), "toy");
  float rtg = 0;
  store->read(0, 1, nullptr, nullptr, nullptr, &rtg);
  EXPECT_EQ(rtg, 1 + 2 + 3);
}

TEST(MemoryStore, ReturnsAreSummedInDouble) {
  // In float32, 1 added to 2^24 is lost each time.
  TransitionArrays arrays = make_arrays({1001});
  arrays.rewards.assign(1001, 1.0f);
  arrays.rewards.back() = 16777216.0f;
  const auto store = MemoryStore::create(std::move(arrays), "toy");
  EXPECT_EQ(store->episode(0).ret, 16777216.0 + 1000.0);
  float rtg = 0;
  store->read(0, 1, nullptr, nullptr, nullptr, &rtg);
  EXPECT_EQ(rtg, 16778216.0f);
}

TEST(MemoryStore, AccessOutsideThrows) {
  const auto store = MemoryStore::create(make_arrays({3}), "toy");
  std::vector<float> out(64);
  EXPECT_THROW(store->episode(-1), std::out_of_range);
  EXPECT_THROW(store->episode(1), std::out_of_range);
  EXPECT_THROW(store->read(-1, 1, out.data(), nullptr, nullptr, nullptr), std::out_of_range);
  EXPECT_THROW(store->read(0, -1, out.data(), nullptr, nullptr, nullptr), std::out_of_range);
  EXPECT_THROW(store->read(2, 2, out.data(), nullptr, nullptr, nullptr), std::out_of_range);
  EXPECT_NO_THROW(store->read(3, 0, out.data(), nullptr, nullptr, nullptr));
  const auto huge = std::numeric_limits<std::int64_t>::max();
  expect_contains(message_of<std::out_of_range>(
                      [&] { store->read(1, huge, out.data(), nullptr, nullptr, nullptr); }),
                  {"toy", std::to_string(huge), "from 1", "3"});
}

TEST(MemoryStoreErrors, DifferentLengths) {
  TransitionArrays arrays = make_arrays({3});
  arrays.rewards.pop_back();
  expect_contains(create_error(arrays), {"toy.hdf5", "differ in length", "observations 3",
                                         "actions 3", "rewards 2", "terminals 3", "timeouts 3"});
}

TEST(MemoryStoreErrors, NotAWholeNumberOfRows) {
  TransitionArrays arrays = make_arrays({3});
  arrays.observations.push_back(0);
  expect_contains(create_error(arrays), {"toy.hdf5", "observations", "7 values", "2 columns"});
}

TEST(MemoryStoreErrors, NoColumns) {
  TransitionArrays arrays = make_arrays({3});
  arrays.act_dim = 0;
  expect_contains(create_error(arrays), {"toy.hdf5", "actions", "at least 1 column", "got 0"});
}

TEST(MemoryStoreErrors, Empty) {
  expect_contains(create_error(make_arrays({})), {"toy.hdf5", "empty", "0 rows"});
}

TEST(MemoryStoreErrors, NoEpisodeEnd) {
  expect_contains(create_error(make_arrays({}, 5)),
                  {"toy.hdf5", "no episode ends", "terminals", "timeouts", "5 rows"});
}

TEST(MemoryStoreErrors, NotFinite) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float infinity = std::numeric_limits<float>::infinity();
  TransitionArrays arrays = make_arrays({6});
  arrays.observations[5] = nan;
  arrays.observations[8] = infinity;
  expect_contains(create_error(arrays),
                  {"toy.hdf5", "observations row 2, column 1 is NaN", "2 such values"});
  arrays = make_arrays({6});
  arrays.actions[4] = -infinity;
  expect_contains(create_error(arrays), {"actions row 4 is infinite", "1 such values"});
  arrays = make_arrays({6});
  arrays.rewards[5] = nan;
  expect_contains(create_error(arrays), {"rewards row 5 is NaN"});
}

TEST(MemoryStoreErrors, ReturnBeyondFloat) {
  TransitionArrays arrays = make_arrays({3});
  arrays.rewards.assign(3, 3e38f);
  expect_contains(create_error(arrays), {"toy.hdf5", "return-to-go at row 1", "float32"});
}

}  // namespace
}  // namespace dmamba::data
