// What the models share: their layers.
#pragma once

#include <torch/nn.h>

#include <vector>

#include "dmamba/config/config.h"
#include "dmamba/nn/block.h"
#include "dmamba/nn/token_kinds.h"

namespace dmamba::model {

/// Throws ConfigError, opening with the model's name, for a value below 1.
void check_positive(const char* model, const char* name, int64_t value);

/// The layers that the config names, each of them registered in `list`. Throws ConfigError, opening
/// with the model's name, for sizes below 1 or an unknown choice.
std::vector<nn::Block> make_layers(const char* model, const config::ModelConfig& config,
                                   torch::nn::ModuleList list);

/// The author's code passes its layers through GPT-2's initialiser, which also overwrites dt_proj:
/// linear weights normal with deviation 0.02, biases zero.
void initialize_as_paper(const std::vector<nn::Block>& layers);

/// What a step of recurrent inference says of its tokens: (previous action, return-to-go, state) or
/// fewer, the first of them opening a segment where `first` (batch,) bool, and then without an
/// action before it.
ops::TokenFlags step_flags(const torch::Tensor& first, const nn::TokenKinds& kinds);

}  // namespace dmamba::model
