// Layers by name, and their initial values.
#include "src/model/layers.h"

#include <string>

#include "dmamba/common/error.h"

namespace dmamba::model {
namespace {

/// The mixer of each layer: one word for all, or one per layer.
std::vector<std::string> mixers_by_layer(const config::ModelConfig& config) {
  const auto& names = config.token_mixer;
  if (names.size() == 1) return std::vector<std::string>(config.n_layer, names[0]);
  if (static_cast<int64_t>(names.size()) != config.n_layer) {
    throw ConfigError("model.token_mixer names " + std::to_string(names.size()) + " mixers for " +
                      std::to_string(config.n_layer) +
                      " layers (model.n_layer): give one word, or one per layer");
  }
  return names;
}

}  // namespace

void check_positive(const char* model, const char* name, int64_t value) {
  if (value < 1) {
    throw ConfigError(std::string(model) + ": " + name + " must be at least 1, got " +
                      std::to_string(value));
  }
}

std::vector<nn::Block> make_layers(const char* model, const config::ModelConfig& config,
                                   torch::nn::ModuleList list) {
  check_positive(model, "d_model", config.d_model);
  check_positive(model, "n_layer", config.n_layer);
  check_positive(model, "context_length", config.context_length);
  check_positive(model, "max_timestep", config.max_timestep);
  if (config.padding != "masked" && config.padding != "paper") {
    throw ConfigError("model.padding: '" + config.padding +
                      "' is unknown; choose one of masked, paper");
  }
  if (config.initialization != "mamba" && config.initialization != "paper") {
    throw ConfigError("model.initialization: '" + config.initialization +
                      "' is unknown; choose one of mamba, paper");
  }
  std::vector<nn::Block> layers;
  for (const std::string& mixer : mixers_by_layer(config)) {
    layers.emplace_back(mixer, config);
    list->push_back(layers.back());
  }
  return layers;
}

void initialize_as_paper(const std::vector<nn::Block>& layers) {
  torch::NoGradGuard no_grad;
  for (const auto& layer : layers) {
    for (const auto& module : layer->modules()) {
      if (auto* linear = module->as<torch::nn::Linear>()) {
        linear->weight.normal_(0.0, 0.02);
        if (linear->bias.defined()) linear->bias.zero_();
      }
    }
  }
}

ops::TokenFlags step_flags(const torch::Tensor& first, const nn::TokenKinds& kinds) {
  const torch::Tensor later = torch::zeros_like(first), real = ~later;
  std::vector<torch::Tensor> mask(kinds.count(), real), starts(kinds.count(), later);
  if (kinds.actions()) mask[0] = ~first;
  starts[0] = first;
  return {torch::stack(mask, 1), torch::stack(starts, 1), kinds.first_of_step()};
}

}  // namespace dmamba::model
