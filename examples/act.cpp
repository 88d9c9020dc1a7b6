// Acts with a trained model, without Python: reads what an environment shows from standard input,
// writes actions to standard output, a line each.
//
//   act CHECKPOINT TARGET [fp32|bf16]
//
// CHECKPOINT is a folder like RUN/checkpoints/step-00001000, TARGET the raw return to ask for. A
// line of input is "reward state_1 ... state_n": the reward of the last action (at an episode's
// start any number, which is not read) and the raw observation. An empty line ends the episode.
#include <c10/util/Exception.h>
#include <torch/types.h>

#include <exception>
#include <iostream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "dmamba/train/load_policy.h"

namespace {

using dmamba::model::Policy;

/// The numbers of a text; none where there is anything else.
std::vector<double> numbers_in(const std::string& text) {
  std::istringstream stream(text);
  std::vector<double> values;
  for (double value; stream >> value;) values.push_back(value);
  if (!stream.eof()) values.clear();
  return values;
}

void act(Policy& policy, const std::string& target) {
  const std::vector<double> wanted = numbers_in(target);
  if (wanted.size() != 1) {
    throw std::runtime_error("TARGET must be a number, got '" + target + "'");
  }
  const torch::Tensor all = torch::ones({1}, torch::kBool);
  const torch::Tensor targets = torch::full({1}, wanted[0], torch::kDouble);
  std::cout.precision(9);
  bool begins = true;
  std::string line;
  for (int number = 1; std::getline(std::cin, line); ++number) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) {
      begins = true;
      continue;
    }
    const std::vector<double> values = numbers_in(line);
    if (values.size() < 2) {
      throw std::runtime_error("line " + std::to_string(number) +
                               ": expected a reward and a state, all numbers, got '" + line + "'");
    }
    if (begins) {
      policy.reset(all, targets);
    } else {
      policy.observe(torch::full({1}, values[0], torch::kDouble));
    }
    begins = false;
    const torch::Tensor state = torch::tensor(std::vector<float>(values.begin() + 1, values.end()));
    const torch::Tensor action = policy.act(state.unsqueeze(0));
    for (int64_t i = 0; i < action.size(1); ++i) {
      std::cout << (i > 0 ? " " : "") << action[0][i].item<float>();
    }
    std::cout << '\n' << std::flush;  // at once: the environment waits for it
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3 || argc > 4) {
    std::cerr << "usage: act CHECKPOINT TARGET [fp32|bf16]\n";
    return 2;
  }
  try {
    dmamba::model::PolicyOptions options;
    options.kind = "recurrent";
    if (argc == 4) options.weights = argv[3];
    Policy policy = dmamba::train::load_policy(argv[1], options);
    act(policy, argv[2]);
  } catch (const c10::Error& error) {
    std::cerr << "act: " << error.what_without_backtrace() << "\n";
    return 1;
  } catch (const std::exception& error) {
    std::cerr << "act: " << error.what() << "\n";
    return 1;
  }
  return 0;
}
