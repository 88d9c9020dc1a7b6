// The steps of a run on a CUDA device: queued, captured, replayed.
#pragma once

#include <c10/core/Event.h>

#include <memory>
#include <vector>

#include "dmamba/config/config.h"
#include "dmamba/model/dmamba.h"
#include "dmamba/train/batch_loader.h"
#include "dmamba/train/optimizer.h"
#include "src/nn/step_context.h"
#include "src/ops/cuda_only.h"
#include "src/ops/graph.h"

namespace dmamba::train {

/// A step launches, in this order: begin_step (batch, dropout keys, scalars), the model forward and
/// backward, with the weights' gradients on a stream beside, and the optimizer. All that a step
/// depends on lies on the device, so a graph of one step, replayed, is the next step.
///
/// The first two steps of a burst with new parameters run op by op, so that libraries allocate what
/// they keep; they are steps like any other. Keeps references to model, loader and optimizer.
class DeviceRun {
 public:
  DeviceRun(const config::Config& config, model::DMamba model, BatchLoader& batches,
            AdamW& optimizer, torch::Device device);

  /// Runs the enclosed steps on this run's own stream. Between bursts parameters may be changed,
  /// frozen or replaced.
  class Burst {
   public:
    explicit Burst(DeviceRun& run) : scope_(run.stream_) { run.begin_burst(); }

   private:
    ops::WorkStream::Scope scope_;
  };

  /// Queues step number `step`. The host waits only where the device is several steps behind.
  void step(int64_t step);

  /// Makes `step` the next one.
  void set_step(int64_t step);

  const ops::cuda_only::StepState& state() const { return state_; }
  bool uses_graph() const { return graph_ != nullptr; }

 private:
  void begin_burst();
  void launch();
  bool try_capture();
  std::vector<const void*> identity() const;

  config::TrainingConfig training_;
  ops::cuda_only::BeginStep begin_;
  model::DMamba model_;
  BatchLoader& batches_;
  AdamW& optimizer_;
  ops::cuda_only::StepState state_;
  torch::Tensor one_;  // the loss' own gradient
  ops::WorkStream stream_;
  ops::SideStream side_;
  nn::StepContext context_;
  std::unique_ptr<ops::Graph> graph_;
  std::vector<const void*> identity_;  // of the parameters that the graph was captured with
  int warm_ = 0;                       // steps done op by op since then
  bool capture_failed_ = false;
  std::vector<c10::Event> queued_;
  size_t turn_ = 0;
};

}  // namespace dmamba::train
