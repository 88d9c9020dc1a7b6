// Beginning from parameters that another run has learned.
#pragma once

#include <torch/nn.h>

#include <filesystem>
#include <string>
#include <vector>

#include "dmamba/config/config.h"

namespace dmamba::train {

/// What became of a model's parameters, by name, in the model's order.
struct TransferReport {
  std::vector<std::string> taken;
  std::vector<std::string> fresh;  ///< as they were before
};

/// Copies the parameters of `from`, a checkpoint folder or a safetensors file, into the model of a
/// run with this config, where name and shape are the same.
///
/// With `fresh: auto`, an embedding or head (embed_state, embed_action, predict_action; for games
/// action_embeddings, head) keeps the values that it has where the sizes of states or actions
/// differ, where the checkpoint's environment is another one, or where the file has none. A
/// checkpoint of several sets gives its trunk, and what belongs to the set `config.transfer.set`.
/// Parameters that match another pattern of `fresh` keep theirs too.
///
/// Throws CheckpointError for anything else that does not fit: it names the parameter, both shapes
/// and the model.* keys that differ; ConfigError for a pattern that matches no parameter. Nothing
/// is changed then.
TransferReport init_parameters(const std::filesystem::path& from, torch::nn::Module& model,
                               const config::Config& config);

/// Has the parameters that match one of the patterns keep their values: they require no gradient
/// from now on. Throws ConfigError for a pattern that matches none, and where nothing is left to
/// train.
void freeze(torch::nn::Module& model, const std::vector<std::string>& patterns);

/// The factor of each name's learning rate: that of the last entry "pattern=factor" which matches,
/// else 1. Throws ConfigError for an entry that matches none.
std::vector<double> rate_factors(const std::vector<std::string>& names,
                                 const std::vector<std::string>& entries);

}  // namespace dmamba::train
