// Checkpoints: a folder with model.safetensors, optimizer.safetensors and state.json.
//
// A folder appears under its name only when it is complete: it is written beside, synced, renamed.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "dmamba/config/config.h"
#include "dmamba/model/dmamba.h"
#include "dmamba/model/external.h"
#include "dmamba/train/optimizer.h"

namespace dmamba::train {

/// One of several sets that a run trains on.
struct SetState {
  std::string name;
  int64_t state_dim = 0;
  int64_t act_dim = 0;
  std::vector<float> state_mean, state_std;  ///< (state_dim,)
  int64_t steps = 0;                         ///< optimizer steps on this set
  int64_t skipped = 0;                       ///< of these, the ones that moved nothing
};

/// Steps whose loss or gradient was not finite: they count as steps, and moved nothing.
struct SkippedState {
  int64_t total = 0;
  int64_t in_a_row = 0;   ///< up to now
  int64_t since_row = 0;  ///< of metrics

  bool operator==(const SkippedState&) const = default;
};

/// What a run that chooses its context lengths has come to.
struct ContextState {
  std::vector<int64_t> lengths;  ///< that steps draw K from, each as likely as any other
  int64_t best = 0;              ///< K to act with; 0: the model's
  std::string note;              ///< JSON of whoever chooses; empty: nobody does

  bool operator==(const ContextState&) const = default;
};

/// Everything of a run beside the tensors.
struct TrainingState {
  config::Config config;  ///< as resolved when training began
  int64_t state_dim = 0;
  int64_t act_dim = 0;
  std::vector<float> state_mean, state_std;  ///< (state_dim,), of the dataset
  int64_t num_actions = 0;                   ///< of a model for games, which has no state_dim
  std::string external_model;                ///< its class, of a model that is not this library's
  std::string data_digest;                   ///< of recorded games: actions, rewards, episodes
  std::vector<SetState> sets;                ///< in place of sizes and statistics above; or none
  ContextState contexts;                     ///< of a schedule or a bandit
  int64_t step = 0;                          ///< optimizer steps done
  /// Sums since the last row of metrics, so that a resumed run writes the same rows.
  double loss_sum = 0.0;
  double gradient_norm_sum = 0.0;
  int64_t steps_summed = 0;  ///< those that were skipped too
  SkippedState skipped;
};

/// Writes the checkpoint. Whoever looks finds the old one or the new one, whole, at any moment and
/// after a power cut too. Throws Error naming the path where writing fails, NotFiniteError where
/// a parameter that is trained is not finite; what stood there stays.
void save_checkpoint(const std::filesystem::path& folder, const TrainingState& state,
                     const torch::nn::Module& model, const AdamW& optimizer);

/// What a checkpoint holds of a model: its parameters, and an external one's buffers.
model::NamedTensors saved_tensors(const torch::nn::Module& model);

/// Reads state.json. Throws CheckpointError naming file and field.
TrainingState read_training_state(const std::filesystem::path& folder);

/// Copies model.safetensors into the model's parameters and buffers. Throws CheckpointError naming
/// the tensor that is missing, superfluous, or of another shape or dtype; the model is unchanged
/// then.
void load_parameters(const std::filesystem::path& folder, torch::nn::Module& model);

/// Copies optimizer.safetensors into the moments likewise.
void load_optimizer(const std::filesystem::path& folder, AdamW& optimizer);

}  // namespace dmamba::train
