// Training: batches, loss, gradients, steps, in bursts that leave Python in charge.
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <vector>

#include "dmamba/config/config.h"
#include "dmamba/data/frame_store.h"
#include "dmamba/data/statistics.h"
#include "dmamba/data/trajectory_store.h"
#include "dmamba/model/atari.h"
#include "dmamba/model/dmamba.h"
#include "dmamba/model/external.h"
#include "dmamba/model/multi_dmamba.h"
#include "dmamba/train/checkpoint.h"
#include "dmamba/train/optimizer.h"

namespace dmamba::nn {
struct StepContext;
}

namespace dmamba::train {

class DeviceRun;
class GradientSum;
class Ranks;
class Task;

/// One row of metrics: means over the steps since the row before.
struct MetricsRow {
  int64_t step;          ///< optimizer steps done
  double loss;           ///< NaN where all were skipped
  double gradient_norm;  ///< before the clip
  double learning_rate;  ///< of the last step
  int64_t skipped;       ///< of these steps, the ones that moved nothing and that no mean has
};

/// Trains a model on a store. The same config, data and model give the same bits on one machine
/// with one number of threads, however the steps are cut into bursts or runs: sampling and dropout
/// are keyed by (seed, step). Torch's default generator is not used. Not thread-safe; several
/// trainers of one precision (a setting of the process) may run in threads of their own.
///
/// On CUDA the model is moved to the device and stays there. A step, from the drawing of the batch
/// to the optimizer, is one CUDA graph on a stream of the trainer's own, which begins after the
/// current stream's work and which the current stream waits for; the host reads from the device
/// only for rows of metrics and checkpoints. The same bits come from run to run on one model of
/// GPU, with and without the graph; segments and dropout masks are those of the CPU.
///
/// A step whose loss or gradient (its norm in float32, of all ranks and sets) is not finite moves
/// neither parameters nor moments. training.skip_nan_batches of them in a row are passed over: they
/// count as steps, so that batches and rates are those of a run without them, and AdamW's moments
/// are not the older for them. With one more the run is over.
///
/// With ranks, several processes train one model: each has its share of every batch, and all make
/// the same step from the sum of their gradients. Segments, dropout masks and loss are those of one
/// process; the same number of ranks gives the same bits. Every rank must make the same calls of
/// run() with the same max_steps and no limit of time, and of synchronize().
class Trainer {
 public:
  /// Throws ConfigError where the config is out of range or does not fit the data, the model or the
  /// machine, DataError where K exceeds every episode. States are standardised with `statistics`,
  /// the store's own where absent. What transfer.freeze names requires no gradient from then on;
  /// parameters begin as the model has them, whatever transfer.init_from says.
  Trainer(const config::Config& config, std::shared_ptr<const data::TrajectoryStore> store,
          model::DMamba model, const std::shared_ptr<Ranks>& ranks = nullptr,
          const std::optional<data::StateStatistics>& statistics = {});
  /// A model whose forward is not this library's. Torch's default generators, which it may draw
  /// from, are seeded by (seed, step), and as they were between the calls of run(). On CUDA its
  /// steps are a graph with `graph: on` alone; whatever its forward throws comes out of run(), and
  /// no step is made then.
  Trainer(const config::Config& config, std::shared_ptr<const data::TrajectoryStore> store,
          model::ExternalModel model, const std::shared_ptr<Ranks>& ranks = nullptr,
          const std::optional<data::StateStatistics>& statistics = {});
  Trainer(const config::Config& config, std::shared_ptr<const data::FrameStore> store,
          model::AtariDMamba model, const std::shared_ptr<Ranks>& ranks = nullptr);
  /// On several sets, config.pretraining's, with a store and a model for each; in one process.
  Trainer(const config::Config& config,
          const std::vector<std::shared_ptr<const data::TrajectoryStore>>& stores,
          model::MultiDMamba model);
  ~Trainer();

  /// Trains until `seconds` have passed, `max_steps` are done (negative: no limit) or training is
  /// finished; at least one step unless finished. Returns the rows that fell due. Throws
  /// NotFiniteError where a step's loss or gradient is not finite and none or none more is to be
  /// passed over: at once or, on CUDA, where the next row or checkpoint falls due, or at the next
  /// call. The trainer is then what it was before that step, and may be saved.
  std::vector<MetricsRow> run(double seconds, int64_t max_steps = -1);

  int64_t step() const { return state_.step; }
  /// Steps that were passed over.
  int64_t skipped() const { return state_.skipped.total; }
  bool finished() const { return state_.step >= state_.config.training.steps; }

  /// Writes a checkpoint folder; see checkpoint.h.
  void save(const std::filesystem::path& folder);

  /// Continues from a checkpoint folder. Throws CheckpointError where it is damaged, or was written
  /// by a run whose steps differ from this one's: the message names the keys. What says only when
  /// something is logged, saved or evaluated may differ, and the device, and with a constant
  /// schedule the number of steps.
  void load(const std::filesystem::path& folder);

  /// From now on steps have these lengths K, and the run acts with `best`; checkpoints keep both,
  /// and the note, a JSON text, which load() brings back. Of training.context schedule and bandit,
  /// in one process. Throws ConfigError for a length that is not among training.contexts.
  void choose_contexts(const ContextState& contexts);

  /// Takes parameters, moments and step from rank 0. With ranks, before the first step and after
  /// load(), which rank 0 alone has to call.
  void synchronize();

  /// Gives back what holds on to the ranks' connection, a captured graph: without it NCCL cannot
  /// close. run() makes another.
  void release();

  const TrainingState& state() const { return state_; }

  /// Where the model is and the steps are computed.
  torch::Device device() const { return device_; }
  /// Whether batches are drawn on the device, from a recording in its memory.
  bool data_on_device() const;
  /// Whether the last step was a replay of a CUDA graph.
  bool uses_graph() const;

 private:
  Trainer(const config::Config& config, torch::Device device, std::unique_ptr<Task> task,
          std::shared_ptr<Ranks> ranks);
  bool step_on_host();
  bool skip_on_host(size_t set);
  void count_step();
  void set_step(int64_t step);
  void read_sums();
  void go_back_to(int64_t step);
  [[noreturn]] void refuse_to_go_on();
  MetricsRow take_row();

  std::shared_ptr<Ranks> ranks_;  // null: one process
  std::unique_ptr<Task> task_;
  TrainingState state_;
  bool stopped_ = false;  // the next step's loss or gradient is known not to be finite
  torch::Device device_;
  AdamW optimizer_;
  torch::Tensor loss_sum_, norm_sum_;      // float64 scalars on the device, since the last row
  std::unique_ptr<nn::StepContext> host_;  // dropout keys of a run on the CPU
  std::unique_ptr<GradientSum> sum_;       // over the ranks, of a run on the CPU
  std::unique_ptr<DeviceRun> on_device_;   // of a run on CUDA
};

}  // namespace dmamba::train
