// YAML texts and overrides: strict reading with exact messages, exact writing.
#include "dmamba/config/yaml.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "dmamba/common/error.h"
#include "dmamba/config/fields.h"

namespace dmamba::config {
namespace {

std::string parse_error(const std::string& text) {
  try {
    parse_config(text, "f.yaml");
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "no error";
}

std::string override_error(const std::vector<std::string>& overrides) {
  Config config;
  try {
    apply_overrides(config, overrides);
  } catch (const ConfigError& error) {
    EXPECT_EQ(config, Config{}) << "a failed override must change nothing";
    return error.what();
  }
  return "no error";
}

TEST(Yaml, ReadsEveryType) {
  const Config config = parse_config(R"(
name: first
seed: 18446744073709551615
dataset: {path: "a b.hdf5", rtg_scale: 1e3}
model:
  token_mixer: [mamba, attention]
  n_layer: 2
training:
  learning_rate: +.5
  steps: 9223372036854775807
evaluation:
  targets: [-1.5, 2, 3e2]
)",
                                     "f.yaml");
  EXPECT_EQ(config.name, "first");
  EXPECT_EQ(config.seed, std::numeric_limits<std::uint64_t>::max());
  EXPECT_EQ(config.dataset.path, "a b.hdf5");
  EXPECT_EQ(config.dataset.rtg_scale, 1000.0);
  EXPECT_EQ(config.model.token_mixer, (std::vector<std::string>{"mamba", "attention"}));
  EXPECT_EQ(config.training.learning_rate, 0.5);
  EXPECT_EQ(config.training.steps, std::numeric_limits<std::int64_t>::max());
  EXPECT_EQ(config.evaluation.targets, (std::vector<double>{-1.5, 2.0, 300.0}));
  EXPECT_EQ(config.model.d_model, 128) << "what is left out keeps its default";
}

TEST(Yaml, JsonOneWordListsAndAnchors) {
  EXPECT_EQ(parse_config(R"({"training": {"steps": 5, "learning_rate": 1e-05}})", "json")
                .training.learning_rate,
            1e-5);
  EXPECT_EQ(parse_config("model: {token_mixer: attention}", "x").model.token_mixer,
            std::vector<std::string>{"attention"});
  EXPECT_EQ(parse_config("evaluation: {targets: 3600}", "x").evaluation.targets,
            std::vector<double>{3600.0});
  const Config shared = parse_config("model: {d_state: &n 8, d_conv: *n}", "x");
  EXPECT_EQ(shared.model.d_conv, 8);
}

TEST(Yaml, UnknownAndRepeatedKeys) {
  EXPECT_EQ(parse_error("seed: 1\ntraining:\n  stepz: 3\n"),
            "f.yaml:3: key 'training.stepz': unknown; did you mean 'training.steps'?");
  EXPECT_EQ(parse_error("steps: 3\n"),
            "f.yaml:1: key 'steps': unknown; did you mean 'training.steps'?");
  EXPECT_EQ(parse_error("\n\noptimizer: sgd\n"),
            "f.yaml:3: key 'optimizer': unknown; allowed: name, seed, dataset, model, training, "
            "transfer, pretraining, "
            "evaluation");
  EXPECT_EQ(parse_error("training:\n  steps: 3\n  batch_size: 2\n  steps: 3\n"),
            "f.yaml:4: key 'training.steps': given twice");
  EXPECT_EQ(parse_error("model: {}\nseed: 1\nmodel: {}\n"), "f.yaml:3: key 'model': given twice");
  EXPECT_EQ(parse_error("training.steps: 3\n"),
            "f.yaml:1: key 'training.steps': unknown; write it as 'steps' below 'training:'");
  EXPECT_EQ(parse_error("model:\n  [1]: 2\n"), "f.yaml:2: a key must be a word, got a list");
}

TEST(Yaml, WrongTypes) {
  const std::vector<std::pair<std::string, std::string>> cases{
      {"training: {steps: 1.5}", "'training.steps': expected an integer, got '1.5'"},
      {"training: {steps: 1e3}", "'training.steps': expected an integer, got '1e3'"},
      {"training: {steps: yes}", "'training.steps': expected an integer, got 'yes'"},
      {"training: {steps: '5'}", "'training.steps': expected an integer, got the string \"5\""},
      {"training: {steps: 0x10}", "'training.steps': expected an integer, got '0x10'"},
      {"training: {steps: ++1}", "'training.steps': expected an integer, got '++1'"},
      {"training: {steps: +-1}", "'training.steps': expected an integer, got '+-1'"},
      {"training: {steps: +}", "'training.steps': expected an integer, got '+'"},
      {"training: {steps: }", "'training.steps': expected an integer, got nothing"},
      {"training: {steps: [1]}", "'training.steps': expected an integer, got a list"},
      {"training: {steps: 9223372036854775808}",
       "'training.steps': '9223372036854775808' is out of the range of a 64-bit number"},
      {"seed: -1", "'seed': expected an integer that is not negative, got '-1'"},
      {"training: {beta1: yes}", "'training.beta1': expected a number, got 'yes'"},
      {"training: {beta1: 0.9x}", "'training.beta1': expected a number, got '0.9x'"},
      {"training: {beta1: .nan}", "'training.beta1': expected a number, got '.nan'"},
      {"training: {beta1: nan}", "'training.beta1': expected a finite number, got 'nan'"},
      {"training: {beta1: inf}", "'training.beta1': expected a finite number, got 'inf'"},
      {"training: {beta1: 1e999}",
       "'training.beta1': '1e999' is out of the range of a 64-bit number"},
      {"name: [a]", "'name': expected a string, got a list"},
      {"name: {a: b}", "'name': expected a string, got a map"},
      {"name:", "'name': expected a string, got nothing; write '' for an empty one"},
      {"name: ~", "'name': expected a string, got nothing; write '' for an empty one"},
      {"model: 3", "'model': expected a map of keys, got '3'"},
      {"model: [3]", "'model': expected a map of keys, got a list"},
      {"model:", "'model': expected a map of keys, got nothing"},
      {"evaluation: {targets: [1, x]}", "'evaluation.targets[1]': expected a number, got 'x'"},
      {"evaluation: {targets: [[1]]}", "'evaluation.targets[0]': expected a number, got a list"},
      {"evaluation: {targets: }", "'evaluation.targets': expected a number, got nothing"},
      {"evaluation: {targets: {a: 1}}", "'evaluation.targets': expected a number, got a map"},
  };
  for (const auto& [text, message] : cases) {
    EXPECT_EQ(parse_error(text), "f.yaml:1: key " + message) << text;
  }
}

TEST(Yaml, BrokenTexts) {
  EXPECT_EQ(parse_error(""), "f.yaml: is empty, expected a map of keys");
  EXPECT_EQ(parse_error("# only a comment\n"), "f.yaml: is empty, expected a map of keys");
  EXPECT_EQ(parse_error("\n- a\n- b\n"), "f.yaml:2: expected a map of keys, got a list");
  EXPECT_EQ(parse_error("word"), "f.yaml:1: expected a map of keys, got 'word'");
  EXPECT_EQ(parse_error("seed: 1\n---\nseed: 2\n"),
            "f.yaml: holds 2 YAML documents, expected one; remove the lines '---'");
  EXPECT_EQ(parse_error("seed: 1\nname: [a\n").substr(0, 24), "f.yaml:3: not valid YAML");
  EXPECT_EQ(parse_error("seed: 1\nname: *x\n").substr(0, 24), "f.yaml:2: not valid YAML");
  EXPECT_EQ(parse_error("seed: !!int 1\n"),
            "f.yaml:1: tag 'tag:yaml.org,2002:int' is not supported; leave it out");
  EXPECT_EQ(parse_error("seed: 1\nname: \xff\n"), "f.yaml:2: byte 15 is not UTF-8 text");
  EXPECT_EQ(parse_error("name: a\n\x04training: {}\n"),
            "f.yaml:2: byte 9 is a control character, which YAML does not allow");
  EXPECT_EQ(parse_error("base: other\n"),
            "f.yaml:1: key 'base': only a file has one; this text lies in no folder");
  EXPECT_EQ(parse_error("training: {steps: 0}\n"),
            "f.yaml: key 'training.steps': 0 is not allowed; must be at least 1");
}

TEST(Yaml, BombsAreErrors) {
  EXPECT_EQ(parse_error("name: " + std::string(50000, '[')).substr(0, 7), "f.yaml:");
  EXPECT_EQ(parse_error("name: " + std::string(50, '[') + std::string(50, ']')),
            "f.yaml:1: nested too deep or too large for a configuration");
  std::string laughs = "a0: &a0 [x, x]\n";
  for (int i = 1; i < 15; ++i) {
    const std::string before = "*a" + std::to_string(i - 1);
    laughs += "a" + std::to_string(i) + ": &a" + std::to_string(i) + " [" + before;
    for (int j = 0; j < 8; ++j) laughs += ", " + before;
    laughs += "]\n";
  }
  EXPECT_NE(parse_error(laughs).find("nested too deep or too large"), std::string::npos);
  EXPECT_EQ(parse_error("name: " + std::string(300 * 1024, 'x')),
            "f.yaml: longer than 262144 bytes, too large for a configuration");
}

// yaml-cpp's parser makes an endless list of this one.
TEST(Yaml, AListThatIsNeverClosedEnds) {
  std::string text = to_yaml(Config{});
  text.replace(text.find("name: run"), 5, ",ame:");
  text.replace(text.find("[mamba]"), 7, "[mamba,");
  EXPECT_NE(parse_error(text).find("nested too deep or too large"), std::string::npos);
}

TEST(Yaml, AnAliasInsideWhatItNamesIsAnError) {
  EXPECT_EQ(parse_error("model: &m\n  d_model: *m\n"),
            "f.yaml:2: an alias stands inside what it names");
}

TEST(Yaml, MutatedTextsNeverCrash) {
  const std::string text = to_yaml(Config{});
  const std::string alphabet = "[]{}:,-?&*!|>'\"%@`# \n\tx0~<=.\\";
  std::mt19937 random(1);
  int errors = 0;
  for (int i = 0; i < 3000; ++i) {
    std::string changed = text;
    for (int j = 0; j < 3; ++j) {
      changed[random() % changed.size()] = alphabet[random() % alphabet.size()];
    }
    errors += parse_error(changed) == "no error" ? 0 : 1;
  }
  EXPECT_GT(errors, 1000);
}

TEST(Yaml, DefaultsAreWrittenInFull) {
  const std::string text = to_yaml(Config{});
  EXPECT_TRUE(text.starts_with("name: run\nseed: 0\ndataset:\n  path: \"\"\n")) << text;
  EXPECT_NE(text.find("  token_mixer: [mamba]\n"), std::string::npos);
  EXPECT_NE(text.find("  learning_rate: 0.001\n"), std::string::npos);
  EXPECT_NE(text.find("  targets: []\n"), std::string::npos);
  EXPECT_EQ(parse_config(text, "x"), Config{});
}

TEST(Yaml, DocsAreComments) {
  const std::string text = to_yaml(Config{}, true);
  EXPECT_NE(text.find("  # optimizer steps in all\n  steps: 100000\n"), std::string::npos);
  EXPECT_EQ(parse_config(text, "x"), Config{});
}

/// Sets a field to a value that no default has.
struct Disturb {
  double number = 0.12345;
  void operator()(std::string& value) const { value += "x"; }
  void operator()(double& value) const { value += number; }
  void operator()(std::int64_t& value) const { value += 7; }
  void operator()(std::uint64_t& value) const { value += 7; }
  void operator()(std::vector<std::int64_t>& value) const { value.push_back(7); }
  void operator()(std::vector<double>& value) const { value.push_back(number); }
  void operator()(std::vector<std::string>& value) const { value.emplace_back("x"); }
  template <class Section>
    requires kIsSection<Section>
  void operator()(Section&) const {}
};

TEST(Yaml, EveryFieldIsWritten) {
  const std::string before = to_yaml(Config{});
  Config config;
  int fields = 0;
  const auto disturb_all = [&](auto& section) {
    for_each_field(
        [&](const char* name, auto member, const char* doc) {
          using Value = std::remove_cvref_t<decltype(section.*member)>;
          const std::string text = to_yaml(config);
          Disturb{}(section.*member);
          EXPECT_STRNE(doc, "") << name;
          if (kIsSection<Value>) return;
          EXPECT_NE(to_yaml(config), text) << name;
          ++fields;
        },
        Tag<std::remove_cvref_t<decltype(section)>>{});
  };
  disturb_all(config);
  disturb_all(config.dataset);
  disturb_all(config.model);
  disturb_all(config.training);
  disturb_all(config.transfer);
  disturb_all(config.pretraining);
  disturb_all(config.evaluation);
  EXPECT_EQ(fields, 86);
}

TEST(Yaml, DoublesKeepTheirBits) {
  std::mt19937_64 random(2);
  Config config;
  for (int i = 0; i < 2000; ++i) {
    const double value = std::bit_cast<double>(random());
    if (!std::isfinite(value)) continue;
    config.evaluation.targets = {value};
    const double read = parse_config(to_yaml(config), "x").evaluation.targets.at(0);
    EXPECT_EQ(std::bit_cast<std::uint64_t>(read), std::bit_cast<std::uint64_t>(value));
  }
}

TEST(Yaml, StringsKeepTheirBytes) {
  Config config;
  const std::vector<std::string> words{"yes",
                                       "null",
                                       "~",
                                       "1e3",
                                       "-x",
                                       "a: b",
                                       "a #b",
                                       " a ",
                                       "'q'",
                                       "\"q\"",
                                       "back\\slash",
                                       "a\nb",
                                       "tab\t",
                                       "\x01\x04\x1b\x7f",
                                       "\u00e9\u2028\U0001F40D\u0085\ufeff",
                                       "[x]",
                                       "{",
                                       "&a",
                                       "*a",
                                       "!t",
                                       "%d",
                                       "@home",
                                       "`",
                                       "null ",
                                       "x,y",
                                       "?",
                                       "-",
                                       "=",
                                       "<<"};
  config.model.n_layer = static_cast<std::int64_t>(words.size());
  config.model.token_mixer = words;
  config.dataset.path = "~/\u00e9 data/#1: 'x'.hdf5";
  EXPECT_EQ(parse_config(to_yaml(config), "x"), config);
  config.dataset.path = "\xff";
  EXPECT_THROW(to_yaml(config), ConfigError);
}

TEST(Overrides, DottedBareAndLists) {
  Config config;
  apply_overrides(config, {"training.steps=2000", "context_length=30", "seed=1",
                           "evaluation.targets=[1800,3600]", "token_mixer=[mamba, b, c]",
                           "evaluation.seed=9", "path=~/x=y.hdf5", "environment=''"});
  EXPECT_EQ(config.training.steps, 2000);
  EXPECT_EQ(config.model.context_length, 30);
  EXPECT_EQ(config.seed, 1U);
  EXPECT_EQ(config.evaluation.seed, 9U);
  EXPECT_EQ(config.evaluation.targets, (std::vector<double>{1800.0, 3600.0}));
  EXPECT_EQ(config.model.token_mixer, (std::vector<std::string>{"mamba", "b", "c"}));
  EXPECT_EQ(config.dataset.path, "~/x=y.hdf5");
  apply_overrides(config, {"steps=1", "steps=2"});
  EXPECT_EQ(config.training.steps, 2) << "the last one counts";
}

TEST(Overrides, TogetherTheyMustBeValid) {
  Config config;
  apply_overrides(config, {"token_mixer=[a, b]", "n_layer=2"});
  EXPECT_EQ(config.model.n_layer, 2);
}

TEST(Overrides, Errors) {
  EXPECT_EQ(override_error({"seed=3", "stepz=3"}),
            "override 'stepz=3': key 'stepz': unknown; did you mean 'training.steps'?");
  EXPECT_EQ(override_error({"training.stepz=3"}),
            "override 'training.stepz=3': key 'training.stepz': unknown; did you mean "
            "'training.steps'?");
  EXPECT_EQ(override_error({"steps"}),
            "override 'steps': expected key=value, such as training.steps=2000");
  EXPECT_EQ(override_error({"=3"}),
            "override '=3': expected key=value, such as training.steps=2000");
  EXPECT_EQ(override_error({"evaluation={seed: 3}"}),
            "override 'evaluation={seed: 3}': key 'evaluation': is a section; set its keys: "
            "evaluation.targets, evaluation.episodes, evaluation.every, evaluation.policy, "
            "evaluation.rtg_rewards, evaluation.confidence, evaluation.seed, "
            "evaluation.engine, evaluation.timeout, evaluation.max_failed, "
            "evaluation.temperature, evaluation.sticky_actions");
  EXPECT_EQ(override_error({"steps=many"}),
            "override 'steps=many': key 'training.steps': expected an integer, got 'many'");
  EXPECT_EQ(override_error({"steps="}),
            "override 'steps=': key 'training.steps': expected an integer, got nothing");
  EXPECT_EQ(override_error({"targets=[1,2"}).substr(0, 44),
            "override 'targets=[1,2': not valid YAML: end");
  EXPECT_EQ(override_error({"steps=0"}),
            "after the overrides: key 'training.steps': 0 is not allowed; must be at least 1");
  EXPECT_EQ(override_error({"base=x"}).substr(0, 29), "override 'base=x': key 'base'");
}

TEST(Differences, AreTheKeysWithBothValues) {
  const Config left;
  Config right = left;
  EXPECT_TRUE(differences(left, right).empty());
  right.seed = 3;
  right.model.token_mixer = {"mamba", "mamba"};
  right.training.weight_decay = 0.25;
  std::vector<std::string> found;
  for (const auto& [key, a, b] : differences(left, right)) found.push_back(key + " " + a + " " + b);
  EXPECT_EQ(found, (std::vector<std::string>{"seed 0 3", "model.token_mixer [mamba] [mamba, mamba]",
                                             "training.weight_decay 1e-04 0.25"}));
}

}  // namespace
}  // namespace dmamba::config
