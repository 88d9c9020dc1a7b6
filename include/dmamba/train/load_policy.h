// From a checkpoint to a policy, in one call.
#pragma once

#include <filesystem>

#include "dmamba/model/policy.h"

namespace dmamba::train {

/// A policy with the model of a checkpoint folder, on the CPU. kind, num_envs and weights are those
/// of `options`; rtg_scale and the statistics of the states are the checkpoint's. Throws
/// CheckpointError naming file and field, ConfigError as Policy does.
model::Policy load_policy(const std::filesystem::path& folder, model::PolicyOptions options);

}  // namespace dmamba::train
