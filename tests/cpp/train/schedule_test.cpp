// The learning-rate schedule against values worked out by hand.
#include "dmamba/train/schedule.h"

#include <gtest/gtest.h>

#include <string>

#include "dmamba/common/error.h"

namespace dmamba::train {
namespace {

config::Config make(const std::string& schedule) {
  config::Config config;
  config::TrainingConfig& training = config.training;
  training.steps = 1100;
  training.warmup_steps = 100;
  training.learning_rate = 2.0;
  training.final_learning_rate = 0.1;
  training.schedule = schedule;
  return config;
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
  const auto config = make("cosine");
  EXPECT_NEAR(learning_rate(config, 349), 2.0 * (0.1 + 0.9 * 0.85355339059327373), 1e-12);
  EXPECT_NEAR(learning_rate(config, 599), 2.0 * 0.55, 1e-12);
  EXPECT_NEAR(learning_rate(config, 1099), 0.2, 1e-12);
  EXPECT_NEAR(learning_rate(config, 5000), 0.2, 1e-12);
  for (int step = 100; step < 1099; ++step) {
    EXPECT_GT(learning_rate(config, step), learning_rate(config, step + 1));
  }
}

TEST(Schedule, NoWarmUp) {
  auto config = make("constant");
  config.training.warmup_steps = 0;
  EXPECT_EQ(learning_rate(config, 0), 2.0);
  config.training.schedule = "cosine";
  config.training.steps = 1;
  EXPECT_NEAR(learning_rate(config, 0), 0.2, 1e-12);
}

TEST(Schedule, WarmUpLongerThanTheTraining) {
  auto config = make("cosine");
  config.training.warmup_steps = 10000;
  EXPECT_DOUBLE_EQ(learning_rate(config, 1099), 2.0 * 0.11);
  config.training.warmup_steps = config.training.steps;
  EXPECT_EQ(learning_rate(config, 1099), 2.0);
}

TEST(Schedule, CountsInTokens) {
  auto config = make("cosine");
  config.training.batch_size = 10;
  config.model.context_length = 5;
  config.training.warmup_tokens = 75;     // one and a half steps
  config.training.cosine_tokens = 50075;  // 1001.5 steps
  EXPECT_DOUBLE_EQ(learning_rate(config, 0), 2.0 / 1.5);
  EXPECT_NEAR(learning_rate(config, 500), 2.0 * (0.1 + 0.9 * 0.50078539775), 1e-9);
  EXPECT_NEAR(learning_rate(config, 1001), 0.2, 1e-12);
  config.training.steps = 5000;
  EXPECT_NEAR(learning_rate(config, 1001), 0.2, 1e-12);
}

TEST(Schedule, CosineWithAFloor) {
  const auto config = make("cosine-floor");
  EXPECT_NEAR(learning_rate(config, 599), 2.0 * 0.5, 1e-12);
  EXPECT_NEAR(learning_rate(config, 1099), 0.2, 1e-12);
  EXPECT_NEAR(learning_rate(config, 349), 2.0 * 0.85355339059327373, 1e-12);
}

TEST(Schedule, UnknownNameIsAnError) {
  try {
    learning_rate(make("step"), 0);
    FAIL();
  } catch (const ConfigError& error) {
    EXPECT_STREQ(error.what(),
                 "key 'training.schedule': 'step' is not allowed; must be one of constant, cosine, "
                 "cosine-floor");
  }
}

}  // namespace
}  // namespace dmamba::train
