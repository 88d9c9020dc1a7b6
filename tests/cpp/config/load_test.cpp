// Configuration files: bases, and every recipe of configs/.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "dmamba/common/atomic_file.h"
#include "dmamba/common/error.h"
#include "dmamba/config/yaml.h"

namespace dmamba::config {
namespace {

namespace fs = std::filesystem;

class LoadConfig : public ::testing::Test {
 protected:
  void SetUp() override {
    const std::string test = ::testing::UnitTest::GetInstance()->current_test_info()->name();
    folder_ =
        fs::temp_directory_path() / ("dmamba-load-" + test + "-" + std::to_string(::getpid()));
    fs::create_directories(folder_ / "below");
  }
  void TearDown() override { fs::remove_all(folder_); }

  void write(const std::string& name, const std::string& text) const {
    write_file_atomically(folder_ / name, text);
  }

  Config load(const std::string& name) const { return load_config(folder_ / name); }

  /// The message, with the folder's name left out.
  std::string error_of(const std::string& name) const {
    try {
      load(name);
    } catch (const ConfigError& error) {
      std::string message = error.what();
      const std::string prefix = folder_.string() + "/";
      for (std::size_t at; (at = message.find(prefix)) != std::string::npos;) {
        message.erase(at, prefix.size());
      }
      return message;
    }
    return "no error";
  }

  fs::path folder_;
};

TEST_F(LoadConfig, BasesAreOverridden) {
  write("below/root.yaml", "seed: 1\ntraining: {steps: 10, batch_size: 11}\n");
  write("middle.yaml", "base: below/root\nseed: 2\nname: middle\n");
  write("top.yaml", "training:\n  steps: 20\nbase: middle.yaml\n");
  const Config config = load("top.yaml");
  EXPECT_EQ(config.seed, 2U);
  EXPECT_EQ(config.name, "middle");
  EXPECT_EQ(config.training.steps, 20) << "the file goes before its base wherever `base` stands";
  EXPECT_EQ(config.training.batch_size, 11);
  write("only.yaml", "base: top\n");
  EXPECT_EQ(load("only.yaml"), config);
}

TEST_F(LoadConfig, BaseErrors) {
  write("a.yaml", "base: b\n");
  write("b.yaml", "seed: 1\nbase: c\n");
  write("c.yaml", "base: a\n");
  write("self.yaml", "base: ./self\n");
  EXPECT_EQ(error_of("a.yaml"), "c.yaml:1: key 'base': 'a' leads back to itself");
  EXPECT_EQ(error_of("self.yaml"), "self.yaml:1: key 'base': './self' leads back to itself");
  write("up.yaml", "seed: 1\nbase: ../x\n");
  EXPECT_EQ(error_of("up.yaml"),
            "up.yaml:2: key 'base': '../x' is outside the folder of this file; name one in it");
  write("hidden.yaml", "base: below/../../x\n");
  EXPECT_EQ(error_of("hidden.yaml"),
            "hidden.yaml:1: key 'base': 'below/../../x' is outside the "
            "folder of this file; name one in it");
  write("absolute.yaml", "base: /etc/x\n");
  EXPECT_EQ(error_of("absolute.yaml"),
            "absolute.yaml:1: key 'base': '/etc/x' is outside the "
            "folder of this file; name one in it");
  write("none.yaml", "base: nowhere\n");
  EXPECT_EQ(error_of("none.yaml"), "none.yaml:1: key 'base': no file 'nowhere.yaml'");
  write("list.yaml", "base: [a]\n");
  EXPECT_EQ(error_of("list.yaml"),
            "list.yaml:1: key 'base': expected the name of a configuration, got a list");
  write("empty.yaml", "base:\n");
  EXPECT_EQ(error_of("empty.yaml"),
            "empty.yaml:1: key 'base': expected the name of a configuration, got nothing");
  write("twice.yaml", "base: a\nbase: b\n");
  EXPECT_EQ(error_of("twice.yaml"), "twice.yaml:2: key 'base': given twice");
}

TEST_F(LoadConfig, ErrorsInABaseNameTheBase) {
  write("base.yaml", "seed: 1\nmodel:\n  d_modle: 3\n");
  write("top.yaml", "base: base\n");
  EXPECT_EQ(error_of("top.yaml"),
            "base.yaml:3: key 'model.d_modle': unknown; did you mean 'model.d_model'?");
}

TEST_F(LoadConfig, MissingEmptyAndInvalidFiles) {
  EXPECT_EQ(error_of("x.yaml"), "'x.yaml': cannot open: No such file or directory");
  write("empty.yaml", "");
  EXPECT_EQ(error_of("empty.yaml"), "empty.yaml: is empty, expected a map of keys");
  write("range.yaml", "model: {padding: left}\n");
  EXPECT_EQ(error_of("range.yaml"),
            "range.yaml: key 'model.padding': 'left' is not allowed; must be one of masked, paper");
}

struct Recipe {
  const char* name;
  std::int64_t d_model;
  double learning_rate;
  std::vector<double> targets;
  const char* environment;
};

class Recipes : public ::testing::TestWithParam<Recipe> {};

// arXiv 2403.19925 and the author's gym code.
const std::vector<double> kHopper{1800, 3600, 7200, 36000, 72000};
const std::vector<double> kCheetah{6000, 12000, 24000, 120000, 240000};
const std::vector<double> kWalker{2500, 5000, 10000, 50000, 100000};

TEST_P(Recipes, IsThePapers) {
  const Recipe& recipe = GetParam();
  const std::string name = recipe.name;
  const Config config = load_config(fs::path(DMAMBA_CONFIGS) / "experiment" / (name + ".yaml"));
  EXPECT_EQ(config.name, name);
  EXPECT_EQ(config.dataset.path, name + "-v2");
  EXPECT_EQ(config.dataset.environment, recipe.environment);
  EXPECT_EQ(config.dataset.rtg_scale, 1000.0);
  EXPECT_EQ(config.model.d_model, recipe.d_model);
  EXPECT_EQ(config.model.n_layer, 3);
  EXPECT_EQ(config.model.context_length, 20);
  EXPECT_EQ(config.model.padding, "paper");
  EXPECT_EQ(config.model.initialization, "paper");
  EXPECT_EQ(config.training.learning_rate, recipe.learning_rate);
  EXPECT_EQ(config.training.steps, 100000);
  EXPECT_EQ(config.training.warmup_steps, 10000);
  EXPECT_EQ(config.training.schedule, "constant");
  EXPECT_EQ(config.training.decay, "all");
  EXPECT_EQ(config.evaluation.targets, recipe.targets);
  EXPECT_EQ(config.evaluation.episodes, 100);
  EXPECT_EQ(config.evaluation.every, 10000);
  EXPECT_EQ(parse_config(to_yaml(config), "x"), config);
}

INSTANTIATE_TEST_SUITE_P(
    D4rl, Recipes,
    ::testing::Values(Recipe{"hopper-medium", 256, 1e-4, kHopper, "Hopper-v4"},
                      Recipe{"hopper-medium-replay", 256, 1e-4, kHopper, "Hopper-v4"},
                      Recipe{"hopper-medium-expert", 128, 1e-3, kHopper, "Hopper-v4"},
                      Recipe{"halfcheetah-medium", 128, 1e-3, kCheetah, "HalfCheetah-v4"},
                      Recipe{"halfcheetah-medium-replay", 128, 1e-3, kCheetah, "HalfCheetah-v4"},
                      Recipe{"halfcheetah-medium-expert", 128, 1e-3, kCheetah, "HalfCheetah-v4"},
                      Recipe{"walker2d-medium", 128, 1e-4, kWalker, "Walker2d-v4"},
                      Recipe{"walker2d-medium-replay", 128, 1e-3, kWalker, "Walker2d-v4"},
                      Recipe{"walker2d-medium-expert", 128, 1e-3, kWalker, "Walker2d-v4"}),
    [](const auto& info) {
      std::string name = info.param.name;
      std::replace(name.begin(), name.end(), '-', '_');
      return name;
    });

TEST(Configs, EveryFileLoadsAndSaysWhatItIs) {
  int files = 0;
  for (const auto& entry :
       fs::recursive_directory_iterator(fs::path(DMAMBA_CONFIGS) / "experiment")) {
    if (!entry.is_regular_file()) continue;
    EXPECT_EQ(entry.path().extension(), ".yaml") << entry.path();
    EXPECT_NO_THROW(load_config(entry.path())) << entry.path();
    EXPECT_TRUE(read_file(entry.path()).starts_with("# ")) << entry.path();
    ++files;
  }
  EXPECT_GE(files, 11);
}

}  // namespace
}  // namespace dmamba::config
