// The learning-rate schedule against values worked out by hand.
#include "dmamba/train/schedule.h"

#include <gtest/gtest.h>

#include <string>

#include "dmamba/common/error.h"

namespace dmamba::train {
namespace {

config::TrainingConfig make(const std::string& schedule) {
  config::TrainingConfig training;
  training.steps = 1100;
  training.warmup_steps = 100;
  training.learning_rate = 2.0;
  training.final_learning_rate = 0.1;
  training.schedule = schedule;
  return training;
}

TEST(Schedule, WarmsUpLinearly) {
  for (const char* schedule : {"constant", "cosine"}) {
    EXPECT_DOUBLE_EQ(learning_rate(make(schedule), 0), 0.02);
    EXPECT_DOUBLE_EQ(learning_rate(make(schedule), 49), 1.0);
    EXPECT_DOUBLE_EQ(learning_rate(make(schedule), 99), 2.0);
  }
}

TEST(Schedule, ConstantStays) {
  EXPECT_EQ(learning_rate(make("constant"), 100), 2.0);
  EXPECT_EQ(learning_rate(make("constant"), 1099), 2.0);
  EXPECT_EQ(learning_rate(make("constant"), 1'000'000), 2.0);
}

TEST(Schedule, CosineFallsToTheFraction) {
  const auto training = make("cosine");
  EXPECT_NEAR(learning_rate(training, 349), 2.0 * (0.1 + 0.9 * 0.85355339059327373), 1e-12);
  EXPECT_NEAR(learning_rate(training, 599), 2.0 * 0.55, 1e-12);
  EXPECT_NEAR(learning_rate(training, 1099), 0.2, 1e-12);
  EXPECT_NEAR(learning_rate(training, 5000), 0.2, 1e-12);
  for (int step = 100; step < 1099; ++step) {
    EXPECT_GT(learning_rate(training, step), learning_rate(training, step + 1));
  }
}

TEST(Schedule, NoWarmUp) {
  auto training = make("constant");
  training.warmup_steps = 0;
  EXPECT_EQ(learning_rate(training, 0), 2.0);
  training.schedule = "cosine";
  training.steps = 1;
  EXPECT_NEAR(learning_rate(training, 0), 0.2, 1e-12);
}

TEST(Schedule, WarmUpLongerThanTheTraining) {
  auto training = make("cosine");
  training.warmup_steps = 10000;
  EXPECT_DOUBLE_EQ(learning_rate(training, 1099), 2.0 * 0.11);
  training.warmup_steps = training.steps;
  EXPECT_EQ(learning_rate(training, 1099), 2.0);
}

TEST(Schedule, UnknownNameIsAnError) {
  try {
    learning_rate(make("step"), 0);
    FAIL();
  } catch (const ConfigError& error) {
    EXPECT_STREQ(error.what(),
                 "key 'training.schedule': 'step' is not allowed; must be one of constant, cosine");
  }
}

}  // namespace
}  // namespace dmamba::train
