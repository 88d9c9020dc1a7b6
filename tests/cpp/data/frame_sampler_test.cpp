// FrameSampler: against a slow reference that builds every stack by itself; the distribution; its
// errors.
#include "dmamba/data/frame_sampler.h"

#include <algorithm>
#include <limits>
#include <memory>
#include <stdexcept>
#include <thread>
#include <vector>

#include "dmamba/common/error.h"
#include "test_support.h"

namespace dmamba::data {
namespace {

using testing::expect_contains;
using testing::message_of;

// Episodes of these lengths; row r: frame with pixels that tell r and the pixel, action r % 5,
// reward r.
std::shared_ptr<const FrameStore> make_store(const std::vector<std::int64_t>& lengths) {
  FrameStore::Columns columns;
  std::int64_t rows = 0;
  for (const std::int64_t length : lengths) columns.episode_ends.push_back(rows += length);
  auto bytes = std::make_shared<std::vector<std::uint8_t>>(rows * kFrameBytes);
  for (std::int64_t row = 0; row < rows; ++row) {
    columns.actions.push_back(row % 5);
    columns.rewards.push_back(row);
    for (std::int64_t i = 0; i < kFrameBytes; ++i) {
      (*bytes)[row * kFrameBytes + i] = 1 + (row * 7 + i) % 255;
    }
  }
  columns.terminated.assign(lengths.size(), 1);
  return FrameStore::create({bytes, bytes->data()}, std::move(columns), "game");
}

FrameSamplerOptions options(std::int64_t batch_size, std::int64_t context_length) {
  return {.batch_size = batch_size, .context_length = context_length, .seed = 7, .rtg_scale = 4.0};
}

// What a FrameBatchView points to; starts filled with rubbish.
struct Batch {
  Batch(std::int64_t batch, std::int64_t K)
      : strips(batch * (K + 3) * kFrameBytes, 99),
        actions(batch * K, 99),
        timesteps(batch, 99),
        rtg(batch * K, 99.0f),
        mask(new bool[batch * K]),
        tokens(batch * K) {
    std::fill_n(mask.get(), tokens, true);
  }
  FrameBatchView view() {
    return {strips.data(), actions.data(), rtg.data(), timesteps.data(), mask.get()};
  }
  bool operator==(const Batch& other) const {
    return strips == other.strips && actions == other.actions && rtg == other.rtg &&
           timesteps == other.timesteps &&
           std::equal(mask.get(), mask.get() + tokens, other.mask.get());
  }

  std::vector<std::uint8_t> strips;
  std::vector<std::int64_t> actions, timesteps;
  std::vector<float> rtg;
  std::unique_ptr<bool[]> mask;
  std::int64_t tokens;
};

// The transition that a sample draws, from the definition of the draw.
std::int64_t drawn(const FrameSampler& sampler, std::uint64_t step, std::int64_t index) {
  const auto block = common::Philox{sampler.options().seed}(step, static_cast<std::uint32_t>(index),
                                                            common::PhiloxPurpose::kSegment);
  return common::bounded(block.bits64(0), sampler.store().num_transitions());
}

// One sample, token by token and stack by stack.
void expect_sample(const FrameSampler& sampler, std::uint64_t step, std::int64_t index,
                   const Batch& batch) {
  SCOPED_TRACE("step " + std::to_string(step) + ", sample " + std::to_string(index));
  const FrameStore& store = sampler.store();
  const std::int64_t K = sampler.options().context_length;
  const std::int64_t transition = drawn(sampler, step, index);
  std::int64_t e = 0;
  while (store.episode(e).start + store.episode(e).length <= transition) ++e;
  const Episode episode = store.episode(e);
  std::int64_t first = transition - episode.start;
  while (first > 0 && episode.length - first < K) --first;
  const std::int64_t length = std::min(K, episode.length - first);
  EXPECT_TRUE((sampler.segment(step, index) == Segment{e, first, length}));
  EXPECT_EQ(batch.timesteps[index], first);
  for (std::int64_t k = 0; k < K; ++k) {
    const std::int64_t t = first + k - (K - length);  // in the episode
    const bool valid = k >= K - length;
    const std::int64_t token = index * K + k;
    ASSERT_EQ(batch.mask[token], valid);
    ASSERT_EQ(batch.actions[token], valid ? store.actions()[episode.start + t] : 0);
    float rtg = 0.0f;
    for (std::int64_t s = t; valid && s < episode.length; ++s) {
      rtg += store.rewards()[episode.start + s];
    }
    ASSERT_EQ(batch.rtg[token], rtg / 4.0f);
    for (std::int64_t back = 0; back < 4 && valid; ++back) {
      const std::uint8_t* got =
          batch.strips.data() + (index * (K + 3) + k + 3 - back) * kFrameBytes;
      const bool before = t - back < 0;
      const std::uint8_t* wanted = store.frames().data() + (episode.start + t - back) * kFrameBytes;
      ASSERT_TRUE(before ? std::all_of(got, got + kFrameBytes, [](auto grey) { return grey == 0; })
                         : std::equal(got, got + kFrameBytes, wanted))
          << "token " << k << ", " << back << " frames back";
    }
  }
  const std::uint8_t* strip = batch.strips.data() + index * (K + 3) * kFrameBytes;
  ASSERT_TRUE(std::all_of(strip, strip + (K - length) * kFrameBytes,
                          [](std::uint8_t grey) { return grey == 0; }));
}

TEST(FrameSampler, WritesWhatTheReferenceWrites) {
  for (const std::int64_t K : {1, 2, 5, 9}) {
    const FrameSampler sampler(make_store({1, 9, 2, 4, 7, 3}), options(31, K));
    for (const std::uint64_t step : {std::uint64_t{0}, std::uint64_t{1} << 33}) {
      Batch batch(31, K);
      sampler.sample(step, batch.view());
      for (std::int64_t i = 0; i < 31; ++i) expect_sample(sampler, step, i, batch);
    }
  }
}

TEST(FrameSampler, EveryTransitionIsEquallyLikely) {
  // With K = 1 the segment is the transition drawn.
  const FrameSampler sampler(make_store({1, 7, 20, 12}), options(64, 1));
  std::vector<double> counts(40);
  constexpr int kSteps = 5000;
  for (int step = 0; step < kSteps; ++step) {
    for (int i = 0; i < 64; ++i) {
      const Segment segment = sampler.segment(step, i);
      counts[sampler.store().episode(segment.episode).start + segment.start] += 1;
    }
  }
  const double expected = 64.0 * kSteps / 40;
  double chi_square = 0;
  for (const double count : counts)
    chi_square += (count - expected) * (count - expected) / expected;
  // 39 degrees of freedom: outside with probability 0.002
  EXPECT_LT(chi_square, 72.1);
  EXPECT_GT(chi_square, 13.6);
}

TEST(FrameSampler, DrawsAreFixedForAllTime) {
  // From an independent program in Python's integers. A change breaks the resuming of runs.
  struct Draw {
    std::uint64_t step;
    std::int64_t index;
    Segment expected;
  };
  const Draw draws[] = {
      {0, 0, {3, 220, 20}},
      {0, 1, {3, 478, 20}},
      {1, 0, {3, 510, 20}},
      {3, 5, {0, 4, 20}},
      {(std::uint64_t{1} << 33) + 1, 63, {3, 980, 20}},
      {0, 33, {2, 0, 4}},
      {3, 9, {1, 280, 20}},
  };
  const FrameSampler sampler(make_store({100, 300, 4, 1000}), options(64, 20));
  for (const Draw& draw : draws) {
    const Segment segment = sampler.segment(draw.step, draw.index);
    EXPECT_TRUE(segment == draw.expected)
        << segment.episode << " " << segment.start << " " << segment.length;
  }
}

TEST(FrameSampler, SeedAndStepMatterAndNothingElse) {
  const auto store = make_store({40, 50});
  const FrameSampler sampler(store, options(16, 3));
  FrameSamplerOptions other = options(16, 3);
  other.seed = 8;
  Batch first(16, 3), again(16, 3), next(16, 3), seeded(16, 3);
  sampler.sample(5, first.view());
  sampler.sample(6, next.view());
  FrameSampler(store, options(16, 3)).sample(5, again.view());
  FrameSampler(store, other).sample(5, seeded.view());
  EXPECT_TRUE(first == again);
  EXPECT_FALSE(first == next);
  EXPECT_FALSE(first == seeded);
}

TEST(FrameSampler, ThreadsThatShareABatchWriteTheSame) {
  const FrameSampler sampler(make_store({5, 9, 14, 30}), options(16, 4));
  Batch serial(16, 4), parallel(16, 4);
  for (int step = 0; step < 20; ++step) {
    sampler.sample(step, serial.view());
    std::vector<std::thread> threads;
    for (int first = 0; first < 4; ++first) {
      threads.emplace_back([&, first] {
        for (int row = first; row < 16; row += 4) {
          sampler.sample_row(step, row, row, parallel.view());
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_TRUE(serial == parallel);
  }
}

TEST(FrameSampler, TimestepsAreCapped) {
  FrameSamplerOptions capped = options(64, 2);
  capped.max_timestep = 6;
  const FrameSampler sampler(make_store({50}), capped);
  Batch batch(64, 2);
  sampler.sample(0, batch.view());
  EXPECT_EQ(*std::max_element(batch.timesteps.begin(), batch.timesteps.end()), 5);
  for (std::int64_t i = 0; i < 64; ++i) {
    EXPECT_EQ(batch.timesteps[i], std::min<std::int64_t>(sampler.segment(0, i).start, 5));
  }
}

TEST(FrameSampler, Errors) {
  const auto store = make_store({5, 8});
  const auto error = [&](const FrameSamplerOptions& bad) {
    return message_of<ConfigError>([&] { FrameSampler(store, bad); });
  };
  FrameSamplerOptions bad = options(0, 2);
  expect_contains(error(bad), {"FrameSampler: batch_size must be 1 to 2^32, got 0"});
  bad = options((std::int64_t{1} << 32) + 1, 2);
  expect_contains(error(bad), {"batch_size", "4294967297"});
  expect_contains(error(options(1, 0)), {"context_length must be at least 1, got 0"});
  bad = options(1, 2);
  bad.max_timestep = 0;
  expect_contains(error(bad), {"max_timestep", "got 0"});
  bad = options(1, 2);
  for (const double scale : {0.0, -1.0, std::numeric_limits<double>::quiet_NaN()}) {
    bad.rtg_scale = scale;
    expect_contains(error(bad), {"rtg_scale must be a positive number"});
  }
  expect_contains(message_of<DataError>([&] { FrameSampler(store, options(1, 9)); }),
                  {"game: context length K = 9", "longest episode, 8 steps"});
  const FrameSampler sampler(store, options(4, 8));
  EXPECT_THROW(sampler.segment(0, 4), std::out_of_range);
  EXPECT_THROW(sampler.segment(0, -1), std::out_of_range);
}

}  // namespace
}  // namespace dmamba::data
