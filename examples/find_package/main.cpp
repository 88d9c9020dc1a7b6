// Predicts actions, from a project that found DMamba with find_package.
//
//   predict              the sizes of a new model's actions, for three episodes
//   predict CHECKPOINT   actions of a trained model, a line for each of K steps
//
// CHECKPOINT is a folder like RUN/checkpoints/step-00001000. The model sees the states 0.1 t, past
// actions 0, returns-to-go 1 and timesteps t = 0, 1, ... K - 1, as they are.
#include <c10/util/Exception.h>
#include <torch/nn.h>

#include <exception>
#include <iostream>

#include "dmamba/model/dmamba.h"
#include "dmamba/train/checkpoint.h"

namespace {

/// A small model with random parameters, for Hopper's sizes.
dmamba::model::DMamba new_model() {
  dmamba::config::ModelConfig config;
  config.d_model = 32;
  config.n_layer = 2;
  config.context_length = 4;
  return dmamba::model::DMamba(11, 3, config);
}

/// The model of a checkpoint; throws CheckpointError naming file and field.
dmamba::model::DMamba load_model(const char* folder) {
  const dmamba::train::TrainingState state = dmamba::train::read_training_state(folder);
  dmamba::model::DMamba model(state.state_dim, state.act_dim, state.config.model);
  dmamba::train::load_parameters(folder, *model);
  return model;
}

/// (batch, K, act_dim) for the inputs in the head of this file, the same for each episode.
torch::Tensor predict(dmamba::model::DMamba& model, int64_t batch) {
  const torch::NoGradGuard no_gradient;
  model->eval();
  const int64_t steps = model->config().context_length;
  const torch::Tensor timesteps = torch::arange(steps).expand({batch, steps});
  const torch::Tensor states =
      (0.1 * timesteps).to(torch::kFloat).unsqueeze(2).expand({batch, steps, model->state_dim()});
  const torch::Tensor actions = torch::zeros({batch, steps, model->act_dim()});
  const torch::Tensor returns_to_go = torch::ones({batch, steps, 1});
  return model->forward(states.contiguous(), actions, returns_to_go, timesteps.contiguous());
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 2) {
    std::cerr << "usage: predict [CHECKPOINT]\n";
    return 2;
  }
  try {
    if (argc == 1) {
      dmamba::model::DMamba model = new_model();
      std::cout << "actions of a new model: " << predict(model, 3).sizes() << "\n";
      return 0;
    }
    dmamba::model::DMamba model = load_model(argv[1]);
    const torch::Tensor actions = predict(model, 1)[0];
    std::cout.precision(9);
    for (int64_t t = 0; t < actions.size(0); ++t) {
      for (int64_t i = 0; i < actions.size(1); ++i) {
        std::cout << (i > 0 ? " " : "") << actions[t][i].item<float>();
      }
      std::cout << "\n";
    }
  } catch (const c10::Error& error) {
    std::cerr << "predict: " << error.what_without_backtrace() << "\n";
    return 1;
  } catch (const std::exception& error) {
    std::cerr << "predict: " << error.what() << "\n";
    return 1;
  }
  return 0;
}
