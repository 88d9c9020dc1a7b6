// The program examples/act.cpp: what it prints is what the policy does.
#include <array>
#include <cstdio>
#include <sstream>

#include "dmamba/train/load_policy.h"
#include "tests/cpp/train/test_support.h"

namespace dmamba::train {
namespace {

using testing::expect_contains;
using testing::TemporaryFolder;

/// Output and errors of the program with these arguments and this input.
std::string run_act(const TemporaryFolder& folder, const std::string& arguments,
                    const std::string& input) {
  testing::write(folder / "input", input);
  const std::string command =
      std::string(DMAMBA_ACT) + " " + arguments + " < " + (folder / "input").string() + " 2>&1";
  FILE* pipe = popen(command.c_str(), "r");
  std::string output;
  std::array<char, 256> part{};
  while (std::fgets(part.data(), part.size(), pipe) != nullptr) output += part.data();
  pclose(pipe);
  return output;
}

std::string checkpoint(const TemporaryFolder& folder) {
  const config::Config config = testing::small_run();
  Trainer trainer(config, testing::make_store(), testing::make_model(config));
  trainer.run(1e9, 3);
  trainer.save(folder / "ckpt");
  return (folder / "ckpt").string();
}

TEST(Act, PrintsWhatThePolicyDoes) {
  const TemporaryFolder folder;
  const std::string path = checkpoint(folder);
  const std::vector<std::vector<std::string>> episodes{
      {"0 0.1 0.2 0.3", "1.5 0.4 -0.2 0.1", "0.5 -1 0 1e-1"}, {"0 1 2 3", "-2 3 2 1"}};
  std::string input;
  for (const auto& episode : episodes) {
    for (const std::string& line : episode) input += line + "\n";
    input += "\n";
  }
  for (const std::string weights : {"fp32", "bf16"}) {
    model::PolicyOptions options;
    options.kind = "recurrent";
    options.weights = weights;
    model::Policy policy = load_policy(path, options);
    std::ostringstream expected;
    expected.precision(9);
    for (const auto& episode : episodes) {
      policy.reset(torch::ones({1}, torch::kBool), torch::full({1}, 12.5, torch::kDouble));
      for (size_t t = 0; t < episode.size(); ++t) {
        std::istringstream line(episode[t]);
        double reward;
        std::array<float, 3> state{};
        line >> reward >> state[0] >> state[1] >> state[2];
        if (t > 0) policy.observe(torch::full({1}, reward, torch::kDouble));
        const torch::Tensor action = policy.act(torch::tensor({{state[0], state[1], state[2]}}));
        expected << action[0][0].item<float>() << " " << action[0][1].item<float>() << "\n";
      }
    }
    EXPECT_EQ(run_act(folder, path + " 12.5 " + weights, input), expected.str());
  }
}

TEST(Act, SaysWhatIsWrong) {
  const TemporaryFolder folder;
  const std::string path = checkpoint(folder);
  expect_contains(run_act(folder, path, ""), {"usage: act CHECKPOINT TARGET"});
  expect_contains(run_act(folder, "/nowhere 1", ""), {"act: /nowhere: not a checkpoint"});
  expect_contains(run_act(folder, path + " 1 int4", ""), {"weights 'int4' are unknown"});
  expect_contains(run_act(folder, path + " much", ""), {"TARGET must be a number, got 'much'"});
  expect_contains(run_act(folder, path + " 1", "0 1 2 3\n0 1 x 3\n"),
                  {"line 2: expected a reward and a state, all numbers, got '0 1 x 3'"});
  expect_contains(run_act(folder, path + " 1", "0 1 2\n"), {"state_dim = 3), got [1, 2]"});
}

}  // namespace
}  // namespace dmamba::train
