// The steps of a run on a CUDA device: queued, captured, replayed.
#pragma once

#include <c10/core/Event.h>

#include <memory>
#include <vector>

#include "dmamba/config/config.h"
#include "dmamba/train/optimizer.h"
#include "src/nn/step_context.h"
#include "src/ops/captured_work.h"
#include "src/ops/cuda_only.h"
#include "src/ops/graph.h"
#include "src/train/gradient_sum.h"
#include "src/train/task.h"

namespace dmamba::train {

/// A step launches, in this order: begin_step (batch, dropout keys, scalars), the model forward and
/// backward, with the weights' gradients on a stream beside and their sums over the ranks, if there
/// are several, on another, and the optimizer. All that a step
/// depends on lies on the device, so a graph of one step, replayed, is the next step.
///
/// The first two steps run op by op; they are steps like any other. Keeps references to task and
/// optimizer.
class DeviceRun {
 public:
  /// `ranks` may be null: then the share is the whole batch.
  DeviceRun(const config::Config& config, Task& task, AdamW& optimizer, torch::Device device,
            Share share, const std::shared_ptr<Ranks>& ranks);

  /// Runs the enclosed steps on this run's own stream. Between bursts parameters may be changed,
  /// frozen, or given other memory.
  class Burst {
   public:
    explicit Burst(DeviceRun& run) : scope_(run.stream_), run_(run) { run.begin_burst(); }
    ~Burst() { run_.count_changes(); }
    Burst(const Burst&) = delete;
    Burst& operator=(const Burst&) = delete;

   private:
    ops::WorkStream::Scope scope_;
    DeviceRun& run_;
  };

  /// Queues step number `step`. The host waits only where the device is several steps behind.
  void step(int64_t step);

  /// Goes on after the steps that have been done, on each of several sets too.
  void set_step(const TrainingState& done);

  /// Reads which steps were skipped, which waits for the device. Returns the number, from 1, of the
  /// step that was one too many, since which nothing has moved; 0: none was.
  int64_t read_skipped(TrainingState& state) const;

  /// Forgets the captured graph.
  void release() {
    for (ops::CapturedWork& work : works_) work.expect({});
  }

  const ops::cuda_only::StepState& state() const { return state_; }
  bool uses_graph() const { return works_[graph_].captured(); }

 private:
  void begin_burst();
  void count_changes() const;
  void launch();
  void launch_pass();
  ops::cuda_only::StepState state_of_set() const;

  config::TrainingConfig training_;
  ops::cuda_only::BeginStep begin_;
  torch::Device device_;
  Task& task_;
  AdamW& optimizer_;
  ops::cuda_only::StepState state_;
  torch::Tensor set_counts_;  // (sets, 2) int64, of several sets: steps done, and those skipped
  torch::Tensor one_;         // the loss' own gradient
  ops::WorkStream stream_;
  ops::SideStream side_;
  nn::StepContext context_;
  std::unique_ptr<GradientSum> sum_;      // over the ranks; null: one process
  std::vector<ops::CapturedWork> works_;  // one a set, or a length of segments
  std::vector<int64_t> identity_;         // of the parameters, as begin_burst() saw them last
  size_t set_ = 0, graph_ = 0;            // of the last step
  std::vector<c10::Event> queued_;
  size_t turn_ = 0;
};

}  // namespace dmamba::train
