// The reader of Minari's HDF5 files: what it makes of good ones, and what it says of others.
#include <limits>

#include "dmamba/common/error.h"
#include "dmamba/data/reader.h"
#include "test_support.h"

namespace dmamba::data {
namespace {

using testing::expect_contains;
using testing::Hdf5Writer;
using testing::message_of;
using testing::TemporaryFolder;

class Minari : public ::testing::Test {
 protected:
  // Episode 0 of three steps is terminated, episode 1 of one step truncated.
  void write(const std::function<void(Hdf5Writer&)>& spoil) const {
    Hdf5Writer writer(path_);
    episode(writer, "episode_0", 3, {0, 0, 1}, {0, 0, 0});
    episode(writer, "episode_1", 1, {0}, {1});
    spoil(writer);
  }

  static void episode(Hdf5Writer& writer, const std::string& name, hsize_t steps,
                      const std::vector<std::int8_t>& terminations,
                      const std::vector<std::int8_t>& truncations) {
    std::vector<float> observations(2 * (steps + 1));
    std::iota(observations.begin(), observations.end(), 0.0F);
    writer.group(name);
    writer.floats(name + "/observations", {steps + 1, 2}, observations, {.chunk = {2, 2}});
    writer.floats(name + "/actions", {steps, 1}, std::vector<float>(steps, 0.5F));
    writer.floats(name + "/rewards", {steps}, std::vector<float>(steps, 2.0F));
    writer.flags(name + "/terminations", {steps}, terminations);
    writer.flags(name + "/truncations", {steps}, truncations);
  }

  std::shared_ptr<TrajectoryStore> open() const { return open_dataset(path_); }

  std::string error_after(const std::function<void(Hdf5Writer&)>& spoil) const {
    write(spoil);
    const std::string message = message_of<DataError>([&] { open(); });
    expect_contains(message, {path_ + ": "});
    return message;
  }

  std::vector<float> observations_of(const TrajectoryStore& store) const {
    std::vector<float> states(store.num_transitions() * store.state_dim());
    store.read(0, store.num_transitions(), states.data(), nullptr, nullptr, nullptr);
    return states;
  }

  TemporaryFolder folder_;
  std::string path_ = folder_.file("main_data.hdf5");
};

void nothing(Hdf5Writer&) {}

TEST_F(Minari, AnEpisodeIsAGroup) {
  write(nothing);
  const auto store = open();
  ASSERT_EQ(store->num_episodes(), 2);
  EXPECT_EQ(store->state_dim(), 2);
  EXPECT_EQ(store->act_dim(), 1);
  EXPECT_EQ(store->episode(0).length, 3);
  EXPECT_TRUE(store->episode(0).terminated);
  EXPECT_EQ(store->episode(0).ret, 6.0);
  EXPECT_EQ(store->episode(1).length, 1);
  EXPECT_FALSE(store->episode(1).terminated);
  // What was seen after the last action is left out: 6, 7 of the first, 2, 3 of the second.
  EXPECT_EQ(observations_of(*store), (std::vector<float>{0, 1, 2, 3, 4, 5, 0, 1}));
  EXPECT_TRUE(store->metadata().empty());
}

TEST_F(Minari, MetadataComeFromOutside) {
  write(nothing);
  EXPECT_EQ(open_minari(path_, {{"environment", "Hopper-v5"}})->metadata().at("environment"),
            "Hopper-v5");
}

TEST_F(Minari, ObservationsMayLackTheLast) {
  write([](Hdf5Writer& writer) {
    writer.remove("episode_1/observations");
    writer.floats("episode_1/observations", {1, 2}, {8, 9});
  });
  EXPECT_EQ(observations_of(*open()), (std::vector<float>{0, 1, 2, 3, 4, 5, 8, 9}));
}

TEST_F(Minari, DictionariesAndTuplesAreFlattenedInOrder) {
  write([](Hdf5Writer& writer) {
    for (const auto& [name, steps] : {std::pair<std::string, hsize_t>{"episode_0", 3},
                                      std::pair<std::string, hsize_t>{"episode_1", 1}}) {
      const std::string top = name + "/observations";
      writer.remove(top);
      writer.group(top);
      writer.floats(top + "/z", {steps}, std::vector<float>(steps, 9.0F));
      writer.group(top + "/a");
      for (int i = 10; i >= 0; --i) {  // _index_10 comes after _index_2
        writer.floats(top + "/a/_index_" + std::to_string(i), {steps, 1},
                      std::vector<float>(steps, static_cast<float>(i)));
      }
    }
  });
  const auto store = open();
  EXPECT_EQ(store->state_dim(), 12);
  std::vector<float> row(12);
  store->read(3, 1, row.data(), nullptr, nullptr, nullptr);
  EXPECT_EQ(row, (std::vector<float>{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 9}));
  expect_contains(store->metadata().at("observation_parts"),
                  {"observations/a/_index_0, ", "_index_10, observations/z"});
}

TEST_F(Minari, AnEpisodeThatNothingEndsWasCut) {
  write([](Hdf5Writer& writer) {
    writer.remove("episode_0/terminations");
    writer.flags("episode_0/terminations", {3}, {0, 0, 0});
  });
  const auto store = open();
  EXPECT_EQ(store->num_episodes(), 2);
  EXPECT_FALSE(store->episode(0).terminated);
  EXPECT_EQ(store->metadata().at("episodes_without_end"), "1");
}

TEST_F(Minari, IntegersAreNumbersButNotActions) {
  const auto integers = [](Hdf5Writer& writer, const std::string& name) {
    writer.remove("episode_1/" + name);
    writer.dataset<std::int64_t>("episode_1/" + name, {1}, H5T_STD_I64LE, H5T_NATIVE_INT64, {7});
  };
  write([&](Hdf5Writer& writer) { integers(writer, "rewards"); });
  EXPECT_EQ(open()->episode(1).ret, 7.0);
  expect_contains(error_after([&](Hdf5Writer& writer) { integers(writer, "actions"); }),
                  {"episode_1/actions are int64, so discrete", "models of games"});
  expect_contains(error_after([&](Hdf5Writer& writer) { integers(writer, "observations"); }),
                  {"episode_1/observations must be", "int64 of shape (1,)", "discrete"});
}

TEST_F(Minari, ErrorsNameTheEpisodeAndTheKey) {
  const auto with = [this](const std::string& name, const std::vector<hsize_t>& shape,
                           const std::vector<float>& values) {
    return error_after([&](Hdf5Writer& writer) {
      writer.remove(name);
      if (!shape.empty()) writer.floats(name, shape, values);
    });
  };
  const float nan = std::numeric_limits<float>::quiet_NaN();
  expect_contains(with("episode_1/actions", {}, {}),
                  {"episode_1 has no actions, only observations, rewards, terminations"});
  expect_contains(with("episode_0/actions", {2, 1}, {0, 0}),
                  {"episode_0/actions has 2 rows, must have 3: there are 3 rewards"});
  expect_contains(with("episode_1/actions", {1, 2}, {0, 0}),
                  {"episode_1/actions has 2 components, that of episode_0 has 1"});
  expect_contains(with("episode_0/observations", {5, 2}, std::vector<float>(10)),
                  {"episode_0/observations has 5 rows, must have 3 or 4"});
  expect_contains(with("episode_0/observations", {4, 2, 2}, std::vector<float>(16)),
                  {"episode_0/observations must be (steps, components)", "(4, 2, 2)", "pictures"});
  expect_contains(with("episode_1/observations", {2, 2}, {0, nan, 0, 0}),
                  {"episode_1/observations row 0, column 1 is NaN"});
  expect_contains(with("episode_0/rewards", {3}, {0, 0, nan}), {"episode_0/rewards row 2 is NaN"});
  expect_contains(with("episode_0/rewards", {3, 2}, std::vector<float>(6)),
                  {"episode_0/rewards must be (steps,), got (3, 2)"});
  expect_contains(with("episode_1/rewards", {0}, {}), {"episode_1/rewards are empty", "no steps"});
}

TEST_F(Minari, EpisodesAreNumberedThroughout) {
  write([](Hdf5Writer& writer) { writer.remove("episode_0"); });
  expect_contains(message_of<DataError>([&] { open_minari(path_); }),
                  {path_ + ": episode_0 is missing: the file has 1 groups"});
  expect_contains(error_after([](Hdf5Writer& writer) {
                    writer.remove("episode_1");
                    writer.group("episode_2");
                  }),
                  {"episode_1 is missing: the file has 2 groups"});
  expect_contains(error_after([](Hdf5Writer& writer) { writer.group("episode_2"); }),
                  {"episode_2 is empty"});
}

TEST_F(Minari, FlagsEndEpisodesWhereTheyEnd) {
  expect_contains(error_after([](Hdf5Writer& writer) {
                    writer.remove("episode_0/truncations");
                    writer.flags("episode_0/truncations", {3}, {0, 1, 0});
                  }),
                  {"episode_0/truncations row 1 is set, but the episode goes on to row 2"});
  expect_contains(error_after([](Hdf5Writer& writer) {
                    writer.remove("episode_0/truncations");
                    writer.flags("episode_0/truncations", {2}, {0, 1});
                  }),
                  {"episode_0/truncations has 2 rows, must have 3"});
}

TEST_F(Minari, PartsOfObservationsAreTheSameThroughout) {
  expect_contains(error_after([](Hdf5Writer& writer) {
                    writer.remove("episode_1/observations");
                    writer.group("episode_1/observations");
                    writer.floats("episode_1/observations/a", {2, 2}, {1, 2, 3, 4});
                  }),
                  {"episode_1 has observations/a, but episode_0 has observations"});
}

TEST_F(Minari, PicturesAndGroupsOfActionsAreRefused) {
  expect_contains(error_after([](Hdf5Writer& writer) {
                    writer.remove("episode_0/observations");
                    writer.dataset<std::uint8_t>("episode_0/observations", {4, 2}, H5T_STD_U8LE,
                                                 H5T_NATIVE_UINT8, std::vector<std::uint8_t>(8));
                  }),
                  {"episode_0/observations must be", "uint8", "pictures"});
  expect_contains(error_after([](Hdf5Writer& writer) {
                    writer.remove("episode_0/actions");
                    writer.group("episode_0/actions");
                    writer.floats("episode_0/actions/a", {3, 1}, {1, 2, 3});
                  }),
                  {"episode_0/actions are a dictionary or a tuple"});
}

TEST_F(Minari, AFileWithoutEpisodes) {
  {
    Hdf5Writer writer(path_);
  }
  expect_contains(message_of<DataError>([&] { open_minari(path_); }), {"the dataset is empty"});
}

}  // namespace
}  // namespace dmamba::data
