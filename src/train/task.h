// What a run trains: a model, the batches that it learns from, and its loss. The trainer's loop,
// the optimizer and the checkpoints are the same for every task.
#pragma once

#include <torch/nn.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "dmamba/config/config.h"
#include "dmamba/data/episode_store.h"
#include "dmamba/data/frame_store.h"
#include "dmamba/data/segment_sampler.h"
#include "dmamba/data/statistics.h"
#include "dmamba/data/trajectory_store.h"
#include "dmamba/model/atari.h"
#include "dmamba/model/dmamba.h"
#include "dmamba/model/external.h"
#include "dmamba/model/multi_dmamba.h"
#include "dmamba/train/checkpoint.h"
#include "src/ops/cuda_only.h"

namespace dmamba::train {

/// The segments of a step's batch that this process trains on: all, or one rank's.
struct Share {
  int64_t first, count;
};

/// Batches come
///   to the CPU: drawn where they are used;
///   to a CUDA device, host: drawn on the CPU into pinned memory, copied while the host goes on;
///   to a CUDA device, resident: the recording lies in the device's memory, and the same batches
///   are drawn there.
/// The tensors of a batch are the same at every step, so that a CUDA graph may read them. Not
/// thread-safe.
class Task {
 public:
  Task() = default;
  virtual ~Task() = default;
  Task(const Task&) = delete;
  Task& operator=(const Task&) = delete;

  virtual torch::nn::Module& model() = 0;
  virtual const data::EpisodeStore& store() const = 0;

  /// Writes sizes and statistics of the data.
  virtual void describe(TrainingState& state) const = 0;

  /// The batch of `step`, in the order of the current stream; nothing to do where the recording is
  /// resident.
  virtual void load(int64_t step) = 0;

  /// On CUDA: scalars and dropout keys of the step that the state names, and its batch where the
  /// recording is resident.
  virtual void begin_step(const ops::cuda_only::BeginStep& options,
                          const ops::cuda_only::StepState& state) = 0;

  /// Which segments the batch of `step` has, over all ranks, for a message.
  virtual std::string describe_batch(int64_t step) const = 0;

  /// The loss of the batch, a float32 scalar.
  virtual torch::Tensor loss() = 0;

  /// The steps of the batch that are no padding, a float32 scalar.
  virtual torch::Tensor real_steps() = 0;

  virtual bool resident() const = 0;

  /// Whether the model is an external one: its forward is not known, so that it runs op by op
  /// unless a graph was asked for, may use a parameter twice, and may draw from torch's default
  /// generators, which load() seeds for the step.
  virtual bool external() const { return false; }

  /// Sets that steps take turns at: a step trains the trunk and what belongs to its set, and
  /// nothing else of the model. A CUDA graph is that of one set.
  virtual int64_t sets() const { return 1; }
  virtual int64_t set_of(int64_t /*step*/) const { return 0; }

  /// CUDA graphs that steps take turns at: one for each set, or each length of segments.
  virtual int64_t graphs() const { return sets(); }
  virtual int64_t graph_of(int64_t step) const { return set_of(step); }

  /// Segments of coming steps have one of these lengths K. Throws ConfigError for one that the run
  /// was not made for.
  virtual void choose_contexts(const std::vector<int64_t>& lengths);
};

/// "64 segments of DATA, from step 3 of episode 0; from step 1 of episode 7; ..."
std::string describe_segments(const std::string& dataset, int64_t batch,
                              const std::function<data::Segment(int64_t)>& segment);

/// The loss in the arithmetic of a run.
torch::Tensor loss_of(Task& task, torch::Device device, bool bf16);

/// Throws ConfigError, DataError where config, data and model do not fit each other. The model is
/// moved to the device. States are standardised with `statistics`, the store's own where absent.
std::unique_ptr<Task> make_task(const config::Config& config,
                                std::shared_ptr<const data::TrajectoryStore> store,
                                model::DMamba model, torch::Device device, Share share,
                                const std::optional<data::StateStatistics>& statistics = {});
std::unique_ptr<Task> make_task(const config::Config& config,
                                std::shared_ptr<const data::TrajectoryStore> store,
                                model::ExternalModel model, torch::Device device, Share share,
                                const std::optional<data::StateStatistics>& statistics = {});
std::unique_ptr<Task> make_task(const config::Config& config,
                                std::shared_ptr<const data::FrameStore> store,
                                model::AtariDMamba model, torch::Device device, Share share);

std::unique_ptr<Task> make_task(
    const config::Config& config,
    const std::vector<std::shared_ptr<const data::TrajectoryStore>>& stores,
    model::MultiDMamba model, torch::Device device);

/// Whether a recording of so many bytes goes to the device's memory; throws ConfigError, opening
/// with its name, where it should and does not fit.
bool keep_on_device(const config::TrainingConfig& training, const std::string& name, int64_t bytes,
                    torch::Device device);

/// Throws ConfigError unless the scale of returns has been filled in.
void check_scale(const config::Config& config);

}  // namespace dmamba::train
