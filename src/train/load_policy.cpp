// Reads what a policy needs of a checkpoint.
#include "dmamba/train/load_policy.h"

#include "dmamba/common/error.h"
#include "dmamba/train/checkpoint.h"

namespace dmamba::train {

model::Policy load_policy(const std::filesystem::path& folder, model::PolicyOptions options) {
  const TrainingState state = read_training_state(folder);
  if (state.num_actions > 0) {
    throw CheckpointError(folder.string() +
                          ": holds a model for games (discrete actions); make an "
                          "AtariPolicy of it");
  }
  if (!state.external_model.empty()) {
    throw CheckpointError(folder.string() + ": holds the parameters of a model of its user's, " +
                          state.external_model + "; evaluate it from Python (model=...)");
  }
  if (!state.sets.empty()) {
    throw CheckpointError(folder.string() + ": holds models of " +
                          std::to_string(state.sets.size()) +
                          " sets; evaluate one of them from Python (set=...), or fine-tune it with "
                          "transfer.set");
  }
  model::DMamba model(state.state_dim, state.act_dim, state.config.model);
  load_parameters(folder, *model);
  options.rtg_scale = state.config.dataset.rtg_scale;
  options.state_mean = state.state_mean;
  options.state_std = state.state_std;
  return {std::move(model), std::move(options)};
}

}  // namespace dmamba::train
