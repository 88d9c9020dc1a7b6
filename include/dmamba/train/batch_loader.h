// Batches on the training's device.
#pragma once

#include <c10/core/Event.h>
#include <torch/types.h>

#include <optional>
#include <vector>

#include "dmamba/data/segment_sampler.h"

namespace dmamba::train {

/// What a step trains on; see data::BatchView for the meaning.
struct Batch {
  torch::Tensor states;         // (batch, K, state_dim) float32
  torch::Tensor actions;        // (batch, K, act_dim) float32
  torch::Tensor returns_to_go;  // (batch, K, 1) float32
  torch::Tensor timesteps;      // (batch, K) int64
  torch::Tensor mask;           // (batch, K) bool
};

/// Draws batches on the CPU; for a CUDA device into pinned memory, from where they are copied while
/// the host goes on. Not thread-safe.
class BatchLoader {
 public:
  BatchLoader(data::SegmentSampler sampler, torch::Device device);

  /// The batch of `step`, in the order of the current stream. The tensors are the same at every
  /// call, so that a CUDA graph may read them; the next call overwrites them. The host waits only
  /// where the device is two whole batches behind.
  const Batch& load(int64_t step);

  const data::SegmentSampler& sampler() const { return sampler_; }

 private:
  /// Memory that batches are drawn into, and the end of the last copy out of it.
  struct Host {
    torch::Tensor buffer;
    Batch batch;
    std::optional<c10::Event> copied;
  };

  data::SegmentSampler sampler_;
  torch::Device device_;
  torch::Tensor buffer_;  // on the device, all of a batch side by side: one copy moves it
  Batch batch_;           // its parts
  std::vector<Host> hosts_;
  size_t turn_ = 0;
};

}  // namespace dmamba::train
