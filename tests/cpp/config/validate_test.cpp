// Ranges: each message names key, value and what is allowed.
#include <gtest/gtest.h>

#include <limits>
#include <string>

#include "dmamba/common/error.h"
#include "dmamba/config/config.h"

namespace dmamba::config {
namespace {

template <class Change>
std::string error_after(Change change) {
  Config config;
  change(config);
  try {
    validate(config);
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "no error";
}

TEST(Validate, DefaultsAreValid) {
  EXPECT_EQ(error_after([](Config&) {}), "no error");
}

TEST(Validate, Integers) {
  EXPECT_EQ(error_after([](Config& c) { c.model.d_model = 0; }),
            "key 'model.d_model': 0 is not allowed; must be from 1 to 65536");
  EXPECT_EQ(error_after([](Config& c) { c.training.steps = -3; }),
            "key 'training.steps': -3 is not allowed; must be at least 1");
  EXPECT_EQ(error_after([](Config& c) { c.training.warmup_steps = 0; }), "no error");
  EXPECT_EQ(error_after([](Config& c) { c.training.threads = 1025; }),
            "key 'training.threads': 1025 is not allowed; must be from 0 to 1024");
  EXPECT_EQ(error_after([](Config& c) { c.evaluation.episodes = 0; }),
            "key 'evaluation.episodes': 0 is not allowed; must be at least 1");
}

TEST(Validate, RealNumbers) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const double infinity = std::numeric_limits<double>::infinity();
  EXPECT_EQ(error_after([](Config& c) { c.model.dropout = 1.0; }),
            "key 'model.dropout': 1 is not allowed; must be at least 0 and less than 1");
  EXPECT_EQ(error_after([](Config& c) { c.training.learning_rate = 0.0; }),
            "key 'training.learning_rate': 0 is not allowed; must be a finite number greater than "
            "0");
  EXPECT_EQ(error_after([=](Config& c) { c.training.gradient_clip = nan; }),
            "key 'training.gradient_clip': nan is not allowed; must be a finite number, at least "
            "0");
  EXPECT_EQ(error_after([](Config& c) { c.training.final_learning_rate = 1.5; }),
            "key 'training.final_learning_rate': 1.5 is not allowed; must be from 0 to 1, a "
            "fraction of training.learning_rate");
  EXPECT_EQ(error_after([=](Config& c) { c.dataset.rtg_scale = infinity; }),
            "key 'dataset.rtg_scale': inf is not allowed; must be a finite number, at least 0");
  EXPECT_EQ(error_after([=](Config& c) { c.evaluation.confidence = nan; }),
            "key 'evaluation.confidence': nan is not allowed; must be greater than 0 and less than "
            "1");
}

TEST(Validate, Transfer) {
  const auto rates = [](const char* entry) {
    return error_after([=](Config& c) { c.transfer.learning_rates = {entry}; });
  };
  EXPECT_EQ(rates("transformer.*=0.1"), "no error");
  EXPECT_EQ(rates("a=b=1e-3"), "no error");
  for (const char* bad : {"transformer.*", "=0.1", "a=", "a=0", "a=-1", "a=nan", "a=inf", "a=1x"}) {
    EXPECT_EQ(rates(bad), "key 'transfer.learning_rates': '" + std::string(bad) +
                              "' is not allowed; must be pattern=factor with a positive number, "
                              "such as transformer.*=0.1; to keep parameters as they are, use "
                              "transfer.freeze");
  }
  EXPECT_EQ(error_after([](Config& c) { c.transfer.freeze = {"a", ""}; }),
            "key 'transfer.freeze': '' is not allowed; must be patterns of parameters' names, such "
            "as transformer.*");
  EXPECT_EQ(error_after([](Config& c) { c.transfer.statistics = "mine"; }),
            "key 'transfer.statistics': 'mine' is not allowed; must be one of data, checkpoint");
  EXPECT_EQ(error_after([](Config& c) { c.transfer.statistics = "checkpoint"; }),
            "key 'transfer.statistics': checkpoint says what is taken from a checkpoint, but "
            "transfer.init_from is empty");
  EXPECT_EQ(error_after([](Config& c) { c.transfer.set = "hopper"; }),
            "key 'transfer.set': 'hopper' says what is taken from a checkpoint, but "
            "transfer.init_from is empty");
  EXPECT_EQ(error_after([](Config& c) { c.dataset.fraction = 0.0; }),
            "key 'dataset.fraction': 0 is not allowed; must be greater than 0 and at most 1");
}

TEST(Validate, Pretraining) {
  const auto error = [](auto change) {
    return error_after([=](Config& c) {
      c.pretraining.sets = {"a.hdf5", "b.hdf5"};
      change(c);
    });
  };
  EXPECT_EQ(error([](Config&) {}), "no error");
  EXPECT_EQ(error([](Config& c) { c.pretraining.rtg_scales = {1000.0}; }),
            "key 'pretraining.rtg_scales': a list of 1 is not allowed; must be empty, or one per "
            "set (pretraining.sets has 2)");
  EXPECT_EQ(error([](Config& c) { c.pretraining.temperature = 0.0; }),
            "key 'pretraining.temperature': 0 is not allowed; must be a finite number greater than "
            "0");
  EXPECT_EQ(error([](Config& c) { c.dataset.path = "c.hdf5"; }),
            "key 'dataset.path': is for a run on one set, but pretraining.sets is given; leave one "
            "out");
}

TEST(Validate, Targets) {
  EXPECT_EQ(error_after([](Config& c) { c.evaluation.targets = {-20.5, 0.0, 3600.0}; }),
            "no error");
  EXPECT_EQ(error_after([](Config& c) { c.evaluation.targets = {1.0, 2.0, 1.0}; }),
            "key 'evaluation.targets': 1 is not allowed; must be given once: the results are named "
            "by their target");
  EXPECT_EQ(error_after([](Config& c) {
              c.evaluation.targets = {std::numeric_limits<double>::infinity()};
            }),
            "key 'evaluation.targets': inf is not allowed; must be a finite number");
}

TEST(Validate, Choices) {
  EXPECT_EQ(error_after([](Config& c) { c.model.padding = "left"; }),
            "key 'model.padding': 'left' is not allowed; must be one of masked, paper");
  EXPECT_EQ(error_after([](Config& c) { c.model.channel_mixing = ""; }),
            "key 'model.channel_mixing': '' is not allowed; must be one of mlp, ssm, none");
  EXPECT_EQ(error_after([](Config& c) { c.model.initialization = "zero"; }),
            "key 'model.initialization': 'zero' is not allowed; must be one of mamba, paper");
  EXPECT_EQ(error_after([](Config& c) { c.training.decay = "none"; }),
            "key 'training.decay': 'none' is not allowed; must be one of matrices, all");
  EXPECT_EQ(error_after([](Config& c) { c.training.schedule = "step"; }),
            "key 'training.schedule': 'step' is not allowed; must be one of constant, cosine, "
            "cosine-floor");
  EXPECT_EQ(error_after([](Config& c) { c.training.device = "gpu"; }),
            "key 'training.device': 'gpu' is not allowed; must be one of auto, cpu, cuda");
  EXPECT_EQ(error_after([](Config& c) { c.training.precision = "fp16"; }),
            "key 'training.precision': 'fp16' is not allowed; must be one of fp32, bf16, tf32");
  EXPECT_EQ(error_after([](Config& c) { c.evaluation.policy = "greedy"; }),
            "key 'evaluation.policy': 'greedy' is not allowed; must be one of windowed, recurrent");
  EXPECT_EQ(error_after([](Config& c) { c.evaluation.engine = "threads"; }),
            "key 'evaluation.engine': 'threads' is not allowed; must be one of workers, envpool");
}

TEST(Validate, FailingEpisodes) {
  EXPECT_EQ(error_after([](Config& c) { c.evaluation.max_failed = 1.0; }), "no error");
  EXPECT_EQ(error_after([](Config& c) { c.evaluation.max_failed = 1.5; }),
            "key 'evaluation.max_failed': 1.5 is not allowed; must be from 0 to 1, a share of the "
            "episodes");
  EXPECT_EQ(error_after([](Config& c) { c.evaluation.timeout = -1.0; }),
            "key 'evaluation.timeout': -1 is not allowed; must be a finite number, at least 0");
}

TEST(Validate, TokenMixers) {
  EXPECT_EQ(error_after([](Config& c) { c.model.token_mixer = {"mamba", "mamba", "mamba"}; }),
            "no error");
  EXPECT_EQ(error_after([](Config& c) { c.model.token_mixer = {"mamba", "mamba"}; }),
            "key 'model.token_mixer': a list of 2 is not allowed; must be one name, or one per "
            "layer (model.n_layer = 3)");
  EXPECT_EQ(error_after([](Config& c) { c.model.token_mixer = {}; }),
            "key 'model.token_mixer': a list of 0 is not allowed; must be one name, or one per "
            "layer (model.n_layer = 3)");
  EXPECT_EQ(error_after([](Config& c) { c.model.token_mixer = {""}; }),
            "key 'model.token_mixer': '' is not allowed; must be the name of a token mixer, such "
            "as mamba");
}

TEST(Validate, NamesAndLengths) {
  for (const char* name : {"", ".", "..", ".hidden", "a/b", "a\nb"}) {
    EXPECT_NE(error_after([&](Config& c) { c.name = name; }), "no error") << name;
  }
  EXPECT_EQ(error_after([](Config& c) { c.name = "a/b"; }),
            "key 'name': 'a/b' is not allowed; must be a folder's name: 1 to 200 bytes, no '/', no "
            "'.' in front");
  EXPECT_NE(error_after([](Config& c) { c.dataset.path = std::string("a\0b", 3); }), "no error");
  EXPECT_EQ(error_after([](Config& c) { c.dataset.max_episode_length = 2000; }),
            "key 'model.max_timestep': 1000 is not allowed; must be at least "
            "dataset.max_episode_length, 2000");
}

}  // namespace
}  // namespace dmamba::config
