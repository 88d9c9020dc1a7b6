// SegmentSampler: the paper's distribution, determinism, padding, ranks, and its errors.
#include "dmamba/data/segment_sampler.h"

#include <algorithm>
#include <array>
#include <limits>
#include <memory>
#include <stdexcept>
#include <thread>

#include "dmamba/common/error.h"
#include "test_support.h"

namespace dmamba::data {
namespace {

using testing::expect_contains;
using testing::make_arrays;
using testing::message_of;

std::shared_ptr<const TrajectoryStore> make_store(const std::vector<std::int64_t>& lengths) {
  return MemoryStore::create(make_arrays(lengths), "toy.hdf5");
}

SamplerOptions options(std::int64_t batch_size, std::int64_t context_length) {
  SamplerOptions result;
  result.batch_size = batch_size;
  result.context_length = context_length;
  result.seed = 7;
  result.state_mean = {1.0f, -2.0f};
  result.state_std = {2.0f, 4.0f};
  result.rtg_scale = 10.0;
  return result;
}

// Owns what a BatchView points to, for states of 2 and actions of 1; starts filled with rubbish.
struct Batch {
  Batch(std::int64_t batch, std::int64_t context)
      : states(batch * context * 2, 99.0f),
        actions(batch * context, 99.0f),
        rtg(batch * context, 99.0f),
        timesteps(batch * context, 99),
        mask(new bool[batch * context]),
        size(batch * context) {}

  BatchView view(std::int64_t first_token = 0) {
    return {states.data() + 2 * first_token, actions.data() + first_token, rtg.data() + first_token,
            timesteps.data() + first_token, mask.get() + first_token};
  }
  std::vector<bool> masks() const { return std::vector<bool>(mask.get(), mask.get() + size); }
  bool operator==(const Batch& other) const {
    return states == other.states && actions == other.actions && rtg == other.rtg &&
           timesteps == other.timesteps && masks() == other.masks();
  }

  std::vector<float> states, actions, rtg;
  std::vector<std::int64_t> timesteps;
  std::unique_ptr<bool[]> mask;
  std::int64_t size;
};

TEST(SegmentSampler, DrawsEpisodesByLengthAndStartsUniformly) {
  // So every (episode, start) has probability 1 / transitions.
  const std::vector<std::int64_t> lengths = {1, 7, 20, 12};
  const SegmentSampler sampler(make_store(lengths), options(64, 5));
  constexpr std::int64_t kSteps = 5000;
  constexpr double kTransitions = 40;
  std::array<std::array<double, 20>, 4> counts{};
  for (std::int64_t step = 0; step < kSteps; ++step) {
    for (std::int64_t i = 0; i < 64; ++i) {
      const Segment segment = sampler.segment(step, i);
      ASSERT_LT(segment.start, lengths[segment.episode]);
      ASSERT_EQ(segment.length,
                std::min<std::int64_t>(5, lengths[segment.episode] - segment.start));
      counts[segment.episode][segment.start] += 1;
    }
  }
  const double expected = 64 * kSteps / kTransitions;
  double chi_square = 0;
  for (std::size_t e = 0; e < lengths.size(); ++e) {
    for (std::int64_t s = 0; s < lengths[e]; ++s) {
      chi_square += (counts[e][s] - expected) * (counts[e][s] - expected) / expected;
    }
  }
  // 39 degrees of freedom: below 72.1 with probability 0.999; above 13.6 likewise, which a
  // sequence that only looks random (evenly spread) would miss.
  EXPECT_LT(chi_square, 72.1);
  EXPECT_GT(chi_square, 13.6);
}

TEST(SegmentSampler, EpisodeAndStartAreIndependentDraws) {
  // Were the start taken from the episode's draw, the transition drawn would be the start itself.
  // Two episodes alike: the start's half must say nothing about the episode.
  const SegmentSampler sampler(make_store({10, 10}), options(1, 1));
  std::array<std::array<double, 2>, 2> counts{};
  constexpr int kDraws = 20000;
  for (int step = 0; step < kDraws; ++step) {
    const Segment segment = sampler.segment(step, 0);
    counts[segment.episode][segment.start / 5] += 1;
  }
  double chi_square = 0;
  for (const auto& row : counts) {
    for (const double count : row) {
      chi_square += (count - kDraws / 4.0) * (count - kDraws / 4.0) / (kDraws / 4.0);
    }
  }
  EXPECT_LT(chi_square, 16.3);  // 3 degrees of freedom, probability 0.999
}

TEST(SegmentSampler, DrawsAreFixedForAllTime) {
  // From an independent program in Python's integers. A change here breaks the resuming of runs
  // begun with an earlier version.
  struct Draw {
    std::uint64_t step;
    std::int64_t index;
    Segment expected;
  };
  const Draw draws[] = {
      {0, 0, {2, 167, 20}},
      {0, 1, {2, 420, 20}},
      {1, 0, {2, 697, 20}},
      {3, 5, {0, 78, 20}},
      {(std::uint64_t{1} << 33) + 1, 63, {2, 638, 20}},
  };
  const SegmentSampler sampler(make_store({100, 300, 1000}), options(64, 20));
  for (const Draw& draw : draws) {
    const Segment segment = sampler.segment(draw.step, draw.index);
    EXPECT_TRUE(segment == draw.expected)
        << segment.episode << " " << segment.start << " " << segment.length;
  }
}

TEST(SegmentSampler, OrderOfCallsDoesNotMatter) {
  const auto store = make_store({5, 9, 14});
  const SegmentSampler forward(store, options(8, 4));
  const SegmentSampler backward(store, options(8, 4));
  std::vector<Segment> first, second;
  for (int n = 0; n < 80; ++n) {
    first.push_back(forward.segment(n / 8, n % 8));
    second.push_back(backward.segment((79 - n) / 8, (79 - n) % 8));
  }
  std::reverse(second.begin(), second.end());
  EXPECT_TRUE(std::equal(first.begin(), first.end(), second.begin()));
}

TEST(SegmentSampler, SeedStepAndIndexMatter) {
  const auto store = make_store({1000, 1000});
  SamplerOptions other = options(64, 4);
  other.seed = 8;
  const SegmentSampler a(store, options(64, 4));
  const SegmentSampler b(store, other);
  int same_seed = 0, same_step = 0, same_index = 0;
  for (int i = 0; i < 63; ++i) {
    same_seed += a.segment(0, i) == b.segment(0, i);
    same_step += a.segment(0, i) == a.segment(std::uint64_t{1} << 32, i);
    same_index += a.segment(0, i) == a.segment(0, i + 1);
  }
  EXPECT_LT(std::max({same_seed, same_step, same_index}), 5);
}

TEST(SegmentSampler, WritesTheSegmentLeftPadded) {
  constexpr std::int64_t kBatch = 32, kContext = 4;
  const std::vector<std::int64_t> lengths = {3, 6};
  const SegmentSampler sampler(make_store(lengths), options(kBatch, kContext));
  Batch batch(kBatch, kContext);
  sampler.sample(11, batch.view());
  int padded = 0;
  for (std::int64_t i = 0; i < kBatch; ++i) {
    const Segment segment = sampler.segment(11, i);
    const std::int64_t padding = kContext - segment.length;
    padded += padding > 0;
    const std::int64_t episode_start = segment.episode == 0 ? 0 : 3;
    const std::int64_t episode_end = segment.episode == 0 ? 3 : 9;
    for (std::int64_t t = 0; t < kContext; ++t) {
      const std::int64_t token = i * kContext + t;
      SCOPED_TRACE("sample " + std::to_string(i) + ", t " + std::to_string(t));
      if (t < padding) {
        EXPECT_FALSE(batch.mask[token]);
        EXPECT_EQ(batch.states[2 * token], 0.0f);
        EXPECT_EQ(batch.states[2 * token + 1], 0.0f);
        EXPECT_EQ(batch.actions[token], 0.0f);
        EXPECT_EQ(batch.rtg[token], 0.0f);
        EXPECT_EQ(batch.timesteps[token], 0);
        continue;
      }
      const std::int64_t step = segment.start + t - padding;
      const std::int64_t row = episode_start + step;
      float rtg = 0;
      for (std::int64_t r = row; r < episode_end; ++r) {
        rtg += static_cast<float>(r + 1);
      }
      EXPECT_TRUE(batch.mask[token]);
      EXPECT_EQ(batch.states[2 * token], (static_cast<float>(row) - 1.0f) / 2.0f);
      EXPECT_EQ(batch.states[2 * token + 1], (static_cast<float>(2 * row) + 2.0f) / 4.0f);
      EXPECT_EQ(batch.actions[token], -static_cast<float>(row));
      EXPECT_EQ(batch.rtg[token], rtg / 10.0f);
      EXPECT_EQ(batch.timesteps[token], step);
    }
  }
  EXPECT_GT(padded, 0);
  EXPECT_LT(padded, kBatch);
}

TEST(SegmentSampler, PaperPadding) {
  SamplerOptions paper = options(64, 3);
  paper.paper_padding = true;
  const SegmentSampler sampler(make_store({3, 1}), paper);
  Batch batch(64, 3);
  sampler.sample(0, batch.view());
  int padded = 0;
  for (std::int64_t token = 0; token < 64 * 3; ++token) {
    if (batch.mask[token]) {
      continue;
    }
    ++padded;
    EXPECT_EQ(batch.states[2 * token], -0.5f);
    EXPECT_EQ(batch.states[2 * token + 1], 0.5f);
    EXPECT_EQ(batch.actions[token], -10.0f);
    EXPECT_EQ(batch.rtg[token], 0.0f);
    EXPECT_EQ(batch.timesteps[token], 0);
  }
  EXPECT_GT(padded, 0);
}

TEST(SegmentSampler, TheWholeRecordingHasTheBitsOfItsSegments) {
  const SegmentSampler sampler(make_store({5, 9, 3}), options(16, 4));
  std::vector<float> states(17 * 2), actions(17), rtg(17);
  sampler.read_all(states.data(), actions.data(), rtg.data());
  Batch batch(16, 4);
  sampler.sample(3, batch.view());
  const std::int64_t starts[] = {0, 5, 14};
  for (std::int64_t row = 0; row < 16; ++row) {
    const Segment segment = sampler.segment(3, row);
    for (std::int64_t t = 0; t < segment.length; ++t) {
      const std::int64_t from = starts[segment.episode] + segment.start + t;
      const std::int64_t to = row * 4 + 4 - segment.length + t;
      EXPECT_EQ(states[2 * from], batch.states[2 * to]);
      EXPECT_EQ(states[2 * from + 1], batch.states[2 * to + 1]);
      EXPECT_EQ(actions[from], batch.actions[to]);
      EXPECT_EQ(rtg[from], batch.rtg[to]);
    }
  }
}

TEST(SegmentSampler, TimestepsAreCapped) {
  SamplerOptions capped = options(64, 4);
  capped.max_timestep = 6;
  const SegmentSampler sampler(make_store({50}), capped);
  Batch batch(64, 4);
  sampler.sample(0, batch.view());
  EXPECT_EQ(*std::max_element(batch.timesteps.begin(), batch.timesteps.end()), 5);
  for (std::int64_t i = 0; i < 64; ++i) {
    const Segment segment = sampler.segment(0, i);
    EXPECT_EQ(batch.timesteps[4 * i + 3],
              std::min<std::int64_t>(segment.start + segment.length - 1, 5));
  }
}

TEST(SegmentSampler, RanksTogetherDrawTheWholeBatch) {
  const SegmentSampler sampler(make_store({5, 9, 14}), options(12, 4));
  Batch whole(12, 4);
  Batch parts(12, 4);
  sampler.sample(3, whole.view());
  sampler.sample_range(3, 7, 5, parts.view(7 * 4));
  sampler.sample_range(3, 0, 7, parts.view());
  EXPECT_TRUE(whole == parts);
}

TEST(SegmentSampler, ThreadsDrawTheSameBatches) {
  const SegmentSampler sampler(make_store({5, 9, 14, 200}), options(16, 4));
  constexpr int kSteps = 200;
  std::vector<Batch> serial, parallel;
  for (int step = 0; step < kSteps; ++step) {
    serial.emplace_back(16, 4);
    parallel.emplace_back(16, 4);
    sampler.sample(step, serial.back().view());
  }
  std::vector<std::thread> threads;
  for (int offset = 0; offset < 4; ++offset) {
    threads.emplace_back([&, offset] {
      for (int step = offset; step < kSteps; step += 4) {
        sampler.sample(step, parallel[step].view());
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  EXPECT_TRUE(std::equal(serial.begin(), serial.end(), parallel.begin()));
}

TEST(SegmentSamplerErrors, ContextLongerThanAnyEpisode) {
  EXPECT_NO_THROW(SegmentSampler(make_store({5, 9}), options(1, 9)));
  expect_contains(message_of<DataError>([] { SegmentSampler(make_store({5, 9}), options(1, 10)); }),
                  {"toy.hdf5", "K = 10", "longest episode, 9"});
}

TEST(SegmentSamplerErrors, IndexOutsideTheBatch) {
  const SegmentSampler sampler(make_store({5}), options(4, 2));
  Batch batch(8, 2);
  EXPECT_THROW(sampler.segment(0, -1), std::out_of_range);
  EXPECT_THROW(sampler.segment(0, 4), std::out_of_range);
  EXPECT_THROW(sampler.sample_range(0, -1, 2, batch.view()), std::out_of_range);
  EXPECT_THROW(sampler.sample_range(0, 3, 2, batch.view()), std::out_of_range);
}

struct BadOption {
  const char* name;
  void (*spoil)(SamplerOptions&);
  std::vector<std::string> message;
};

TEST(SegmentSamplerErrors, OptionsOutOfRange) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const BadOption rows[] = {
      {"batch_size", [](SamplerOptions& o) { o.batch_size = 0; }, {"batch_size", "got 0"}},
      {"index width",
       [](SamplerOptions& o) { o.batch_size = (std::int64_t{1} << 32) + 1; },
       {"batch_size", "4294967297"}},
      {"context", [](SamplerOptions& o) { o.context_length = 0; }, {"context_length", "got 0"}},
      {"timestep", [](SamplerOptions& o) { o.max_timestep = 0; }, {"max_timestep", "got 0"}},
      {"scale", [](SamplerOptions& o) { o.rtg_scale = 0.0; }, {"rtg_scale", "got 0.0"}},
      {"negative scale", [](SamplerOptions& o) { o.rtg_scale = -1.0; }, {"rtg_scale", "got -1"}},
      {"sizes", [](SamplerOptions& o) { o.state_mean.pop_back(); }, {"state_dim = 2", "1 and 2"}},
      {"std", [](SamplerOptions& o) { o.state_std[1] = 0.0f; }, {"state_std[1]", "got 0.0"}},
      {"mean",
       [](SamplerOptions& o) { o.state_mean[0] = std::numeric_limits<float>::quiet_NaN(); },
       {"state_mean[0]", std::to_string(nan)}},
  };
  for (const BadOption& row : rows) {
    SCOPED_TRACE(row.name);
    SamplerOptions bad = options(4, 2);
    row.spoil(bad);
    expect_contains(message_of<ConfigError>([&] { SegmentSampler(make_store({5}), bad); }),
                    row.message);
  }
}

}  // namespace
}  // namespace dmamba::data
