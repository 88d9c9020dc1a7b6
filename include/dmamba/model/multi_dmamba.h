// Models for several sets of states and actions over one trunk.
#pragma once

#include <string>
#include <vector>

#include "dmamba/model/dmamba.h"

namespace dmamba::model {

/// Holds models that share their trunk as one module: the trunk's parameters under their own names,
/// those of a set as "sets.NAME.embed_state.weight" and so on. So a checkpoint has each once.
class MultiDMambaImpl : public torch::nn::Module {
 public:
  /// One name a model, without dots. All models but the first were made over the first's trunk.
  /// Throws ConfigError for no model, an impossible or repeated name, or a trunk of another model.
  MultiDMambaImpl(const std::vector<DMamba>& models, std::vector<std::string> names);

  const std::vector<DMamba>& models() const { return models_; }
  const std::vector<std::string>& names() const { return names_; }

  void train(bool on = true) override;

 private:
  std::vector<DMamba> models_;  // not registered: their modules are, under the names above
  std::vector<std::string> names_;
};
TORCH_MODULE(MultiDMamba);

}  // namespace dmamba::model
