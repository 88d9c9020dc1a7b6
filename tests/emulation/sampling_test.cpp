// The opening of a training step: segments as src/data draws them, the rate, dropout keys.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numbers>
#include <ostream>
#include <random>
#include <utility>
#include <vector>

#include "include/dmamba/common/philox.h"
#include "kernels/sampling/launch.h"
#include "tests/emulation/arrays.h"

namespace {

using namespace dmamba;
using namespace dmamba::kernels;
using namespace dmamba::emulation;
using Integers = std::vector<int64_t>;
using Bytes = std::vector<uint8_t>;

constexpr uint64_t kSeed = 0xFEDCBA9876543210ULL;
constexpr int64_t kStep = (int64_t{3} << 32) + 12345, kMaxTimestep = 9;
constexpr size_t kGuard = 300;  // values behind an array, which nobody may write
constexpr int64_t kFrame = 84 * 84, kBefore = 3;

/// First transitions of episodes of random lengths, the first the longest, then their total.
Integers random_starts(std::mt19937& random, int64_t episodes, int64_t longest) {
  Integers starts{0};
  for (int64_t i = 0; i < episodes; ++i) {
    const auto length = 1 + static_cast<int64_t>(random() % longest);
    starts.push_back(starts.back() + (i == 0 ? longest : length));
  }
  return starts;
}

/// The draw's two numbers below 2^64, as numbers below n.
int64_t below(int64_t n, int64_t sample, int which) {
  const uint64_t bits =
      common::Philox{kSeed}(kStep, static_cast<uint32_t>(sample), common::PhiloxPurpose::kSegment)
          .bits64(which);
  __extension__ using Wide = unsigned __int128;
  return static_cast<int64_t>(static_cast<Wide>(bits) * static_cast<uint64_t>(n) >> 64);
}

struct Segment {
  int64_t first, start, length;  // transition of the recording, step of its episode
};

/// An episode by its length, and where it begins.
std::pair<int64_t, int64_t> draw_transition(const Integers& starts, int64_t sample) {
  const int64_t transition = below(starts.back(), sample, 0);
  const auto after = std::upper_bound(starts.begin(), starts.end(), transition);
  return {transition, after - starts.begin() - 1};
}

/// As data::SegmentSampler.
Segment trajectory_segment(const Integers& starts, int64_t sample, int64_t K) {
  const auto [transition, episode] = draw_transition(starts, sample);
  const int64_t length = starts[episode + 1] - starts[episode], start = below(length, sample, 1);
  return {starts[episode] + start, start, std::min(K, length - start)};
}

/// As data::FrameSampler.
Segment game_segment(const Integers& starts, int64_t sample, int64_t K) {
  const auto [transition, episode] = draw_transition(starts, sample);
  const int64_t whole = starts[episode + 1] - starts[episode], length = std::min(K, whole);
  const int64_t start = std::min(transition - starts[episode], whole - length);
  return {starts[episode] + start, start, length};
}

/// An array with a guard behind it: both are full of a value that the results do not have.
template <class T>
std::vector<T> poisoned(size_t count) {
  return std::vector<T>(count + kGuard, T{77});
}

template <class T>
void expect_written(const std::vector<T>& x, std::vector<T> expected, const char* what) {
  expected.resize(x.size(), T{77});
  EXPECT_TRUE(x == expected) << what;
}

// Trajectories

struct Recording {
  int64_t episodes, longest;
  int64_t batch, K, first_sample;
  int64_t state_dim = 3, act_dim = 2;
};

void PrintTo(const Recording& r, std::ostream* out) {
  *out << r.episodes << "episodes<=" << r.longest << ',' << r.batch << 'x' << r.K << "from"
       << r.first_sample;
}

class BeginStep : public testing::TestWithParam<Recording> {};
INSTANTIATE_TEST_SUITE_P(
    Sampling, BeginStep,
    testing::Values(Recording{1, 1, 1, 1, 0, 1, 1}, Recording{1, 40, 31, 3, 5, 17, 6},
                    Recording{2, 30, 31, 20, 0}, Recording{127, 9, 129, 3, 64},
                    Recording{128, 3, 129, 20, 1, 1, 3}, Recording{129, 5, 129, 1, 0, 129, 2},
                    Recording{300, 60, 31, 129, 7, 5, 1}, Recording{16385, 2, 129, 2, 1000000},
                    Recording{20000, 7, 400, 3, 0, 2, 1}));

TEST_P(BeginStep, WritesTheSegmentsOfTheStep) {
  const auto [episodes, longest, batch, K, first_sample, state_dim, act_dim] = GetParam();
  std::mt19937 random(11);
  const Integers starts = random_starts(random, episodes, longest);
  const int64_t total = starts.back();
  const Floats states = random_floats(random, total * state_dim),
               actions = random_floats(random, total * act_dim),
               returns = random_floats(random, total),
               padding_state = random_floats(random, state_dim);
  const SkippedSteps skipped{};
  StepScalars scalars[2];
  auto out_states = poisoned<float>(batch * K * state_dim);
  auto out_actions = poisoned<float>(batch * K * act_dim), out_returns = poisoned<float>(batch * K);
  auto timesteps = poisoned<int64_t>(batch * K);
  auto mask = poisoned<uint8_t>(batch * K);
  BeginStepParams p{};
  p.step = &kStep;
  p.seed = kSeed;
  p.first_sample = first_sample;
  p.skipped = &skipped;
  p.scalars = scalars;
  p.data = {states.data(), actions.data(), returns.data(), starts.data(), padding_state.data(),
            -10.0F,        episodes,       state_dim,      act_dim};
  p.batch = {out_states.data(),
             out_actions.data(),
             out_returns.data(),
             timesteps.data(),
             reinterpret_cast<bool*>(mask.data()),
             batch,
             K,
             kMaxTimestep};
  ASSERT_EQ(launch_begin_step(p, nullptr), cudaSuccess);

  Floats want_states, want_actions, want_returns;
  Integers want_timesteps;
  Bytes want_mask;
  for (int64_t row = 0; row < batch; ++row) {
    const Segment s = trajectory_segment(starts, first_sample + row, K);
    for (int64_t t = s.length - K; t < s.length; ++t) {  // of the segment; below zero: padding
      const int64_t from = s.first + t;
      for (int64_t c = 0; c < state_dim; ++c) {
        want_states.push_back(t < 0 ? padding_state[c] : states[from * state_dim + c]);
      }
      for (int64_t c = 0; c < act_dim; ++c) {
        want_actions.push_back(t < 0 ? -10.0F : actions[from * act_dim + c]);
      }
      want_returns.push_back(t < 0 ? 0.0F : returns[from]);
      want_timesteps.push_back(t < 0 ? 0 : std::min(s.start + t, kMaxTimestep - 1));
      want_mask.push_back(t < 0 ? 0 : 1);
    }
  }
  expect_written(out_states, want_states, "states");
  expect_written(out_actions, want_actions, "actions");
  expect_written(out_returns, want_returns, "returns_to_go");
  expect_written(timesteps, want_timesteps, "timesteps");
  expect_written(mask, want_mask, "mask");
}

/// Parameters of a step without a batch.
struct Scalars {
  int64_t step = kStep, set_step = 0, set_skipped = 0;
  SkippedSteps skipped{};
  StepScalars scalars[2] = {{77, 77, 77, 77}, {77, 77, 77, 77}};
  Integers keys = poisoned<int64_t>(0);
  BeginStepParams p{};

  Scalars() {
    p.step = &step;
    p.seed = kSeed;
    p.skipped = &skipped;
    p.scalars = scalars;
    p.beta1 = 0.9;
    p.beta2 = 0.95;
    p.learning_rate = {1e-3, 0.1, 0, 0, common::LearningRate::Shape::kConstant};
  }
  void launch() {
    p.dropout_keys = keys.data();
    ASSERT_EQ(launch_begin_step(p, nullptr), cudaSuccess);
  }
};

constexpr double kRounding = 7e-8;  // of a float

void expect_near(float x, double expected) { EXPECT_NEAR(x, expected, kRounding * expected); }

TEST(BeginStepScalars, TheRateHasItsShape) {
  using Shape = common::LearningRate::Shape;
  Scalars s;
  for (const Shape shape : {Shape::kConstant, Shape::kCosine, Shape::kCosineFloor}) {
    for (const double warmup : {0.0, 1.0, 10.5}) {
      for (const double end : {5.0, 100.25}) {
        for (s.step = 0; s.step < 140; s.step += s.step < 12 ? 1 : 9) {
          const double done = static_cast<double>(s.step) + 1;
          const double progress =
              end > warmup ? std::min((done - warmup) / (end - warmup), 1.0) : 0;
          const double cosine = (1 + std::cos(std::numbers::pi * progress)) / 2;
          const double rate = done < warmup               ? done / warmup
                              : shape == Shape::kConstant ? 1
                              : shape == Shape::kCosine   ? 0.1 + 0.9 * cosine
                                                          : std::max(0.1, cosine);
          s.p.learning_rate = {6e-4, 0.1, warmup, end, shape};
          s.launch();
          expect_near(s.scalars[0].learning_rate, 6e-4 * rate);
          expect_near(s.scalars[0].step_size, 6e-4 * rate / (1 - std::pow(0.9, done)));
        }
      }
    }
  }
}

TEST(BeginStepScalars, MomentsAreAsOldAsTheStepsThatWereNotSkipped) {
  for (const int64_t step : {0, 1, 2, 5, 1000}) {
    for (const int64_t skipped : {int64_t{0}, step / 2, step}) {
      Scalars s;
      s.step = step;
      s.skipped.total = skipped;
      s.skipped.in_a_row = step;
      s.launch();
      const auto updates = static_cast<double>(step - skipped + 1);
      expect_near(s.scalars[0].learning_rate, 1e-3);
      expect_near(s.scalars[0].step_size, 1e-3 / (1 - std::pow(0.9, updates)));
      expect_near(s.scalars[0].second_correction, std::sqrt(1 - std::pow(0.95, updates)));
      EXPECT_EQ(s.scalars[0].stopped, 0);
      EXPECT_EQ(s.scalars[1].step_size, 77) << "of a set that there is not";
      EXPECT_EQ(s.scalars[1].learning_rate + s.scalars[1].stopped, 2 * 77);
      EXPECT_EQ(s.scalars[1].second_correction, 77);
    }
  }
}

TEST(BeginStepScalars, ASetHasMomentsOfItsOwn) {
  Scalars s;
  s.step = 20;
  s.skipped = {3, 1, 19};
  s.set_step = 6;
  s.set_skipped = 2;
  s.p.set_step = &s.set_step;
  s.p.set_skipped = &s.set_skipped;
  s.p.learning_rate.warmup = 50;
  s.launch();
  for (const int set : {0, 1}) {
    const double updates = set == 0 ? 18 : 5, rate = 1e-3 * 21 / 50;
    expect_near(s.scalars[set].learning_rate, rate);
    expect_near(s.scalars[set].step_size, rate / (1 - std::pow(0.9, updates)));
    expect_near(s.scalars[set].second_correction, std::sqrt(1 - std::pow(0.95, updates)));
    EXPECT_NE(s.scalars[set].stopped, 0);
  }
}

TEST(BeginStepScalars, DropoutKeysAreThoseOfTheStep) {
  for (const int64_t count : {0, 1, 2, 31, 129, 300}) {
    Scalars s;
    s.keys = poisoned<int64_t>(count);
    s.p.n_keys = count;
    s.launch();
    Integers expected;
    for (int64_t i = 0; i < count; ++i) {
      expected.push_back(
          static_cast<int64_t>(common::dropout_key(kSeed, kStep, static_cast<uint32_t>(i))));
    }
    expect_written(s.keys, expected, "keys");
  }
}

// Games

class DrawStrips : public testing::TestWithParam<Recording> {};
INSTANTIATE_TEST_SUITE_P(Sampling, DrawStrips,
                         testing::Values(Recording{1, 1, 1, 1, 0}, Recording{1, 1, 2, 3, 0},
                                         Recording{1, 40, 31, 3, 5}, Recording{3, 30, 31, 20, 0},
                                         Recording{60, 6, 129, 1, 64}, Recording{60, 6, 129, 3, 1},
                                         Recording{2, 100, 2, 129, 0},
                                         Recording{300, 2, 129, 2, 1000000}));

TEST_P(DrawStrips, WritesTheSegmentsOfTheStep) {
  const auto [episodes, longest, batch, K, first_sample, state_dim, act_dim] = GetParam();
  std::mt19937 random(12);
  const Integers starts = random_starts(random, episodes, longest);
  const int64_t total = starts.back(), strip = (kBefore + K) * kFrame;
  Bytes frames(total * kFrame);
  for (uint8_t& pixel : frames) pixel = static_cast<uint8_t>(random() >> 16);
  std::vector<int32_t> actions(total);
  for (int32_t& action : actions) action = static_cast<int32_t>(random() >> 1);
  const Floats returns = random_floats(random, total);
  auto strips = poisoned<uint8_t>(batch * strip), mask = poisoned<uint8_t>(batch * K);
  auto out_actions = poisoned<int64_t>(batch * K), timesteps = poisoned<int64_t>(batch);
  auto out_returns = poisoned<float>(batch * K);
  const DrawStripsParams p{&kStep,
                           kSeed,
                           first_sample,
                           {frames.data(), actions.data(), returns.data(), starts.data(), episodes},
                           {strips.data(), out_actions.data(), out_returns.data(), timesteps.data(),
                            reinterpret_cast<bool*>(mask.data()), batch, K, kMaxTimestep}};
  ASSERT_EQ(launch_draw_strips(p, nullptr), cudaSuccess);

  Bytes want_strips, want_mask;
  Integers want_actions, want_timesteps;
  Floats want_returns;
  for (int64_t row = 0; row < batch; ++row) {
    const Segment s = game_segment(starts, first_sample + row, K);
    want_timesteps.push_back(std::min(s.start, kMaxTimestep - 1));
    // Blank, then as much of the history as a stack sees, then the segment.
    const int64_t history = std::min(kBefore, s.start), real = history + s.length;
    want_strips.resize(want_strips.size() + strip - real * kFrame);
    const auto from = frames.begin() + (s.first - history) * kFrame;
    want_strips.insert(want_strips.end(), from, from + real * kFrame);
    for (int64_t t = s.length - K; t < s.length; ++t) {
      want_actions.push_back(t < 0 ? 0 : actions[s.first + t]);
      want_returns.push_back(t < 0 ? 0.0F : returns[s.first + t]);
      want_mask.push_back(t < 0 ? 0 : 1);
    }
  }
  expect_written(strips, want_strips, "strips");
  expect_written(out_actions, want_actions, "actions");
  expect_written(out_returns, want_returns, "returns_to_go");
  expect_written(timesteps, want_timesteps, "timesteps");
  expect_written(mask, want_mask, "mask");
}

}  // namespace
