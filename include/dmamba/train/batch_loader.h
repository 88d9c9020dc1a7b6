// Batches on the training's device.
#pragma once

#include <c10/core/Event.h>
#include <torch/types.h>

#include <memory>
#include <optional>
#include <vector>

#include "dmamba/data/segment_sampler.h"

namespace dmamba::ops::cuda_only {
struct TrajectoryTensors;
}

namespace dmamba::train {

/// What a step trains on; see data::BatchView for the meaning.
struct Batch {
  torch::Tensor states;         // (batch, K, state_dim) float32
  torch::Tensor actions;        // (batch, K, act_dim) float32
  torch::Tensor returns_to_go;  // (batch, K, 1) float32
  torch::Tensor timesteps;      // (batch, K) int64
  torch::Tensor mask;           // (batch, K) bool
};

/// Where batches come from.
///   the CPU's: drawn where they are used.
///   a CUDA device's, host: drawn on the CPU into pinned memory, copied while the host goes on.
///   a CUDA device's, resident: the recording lies in the device's memory, and a step's first
///   launch draws the same batch there (ops::cuda_only::begin_step).
/// Not thread-safe.
class BatchLoader {
 public:
  BatchLoader(data::SegmentSampler sampler, torch::Device device, bool resident);
  ~BatchLoader();
  BatchLoader(BatchLoader&&) noexcept;

  /// The batch of `step`, in the order of the current stream; nothing to do where the recording is
  /// resident. The tensors are the same at every call, so that a CUDA graph may read them; the next
  /// call overwrites them. The host waits only where the device is two whole batches behind.
  const Batch& load(int64_t step);

  /// The tensors that load() fills.
  const Batch& batch() const { return batch_; }
  /// The recording on the device; null unless resident.
  const ops::cuda_only::TrajectoryTensors* resident() const { return resident_.get(); }

  const data::SegmentSampler& sampler() const { return sampler_; }

  /// Bytes that the recording takes on a device.
  static int64_t resident_bytes(const data::TrajectoryStore& store);

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
  std::unique_ptr<ops::cuda_only::TrajectoryTensors> resident_;
  std::vector<Host> hosts_;
  size_t turn_ = 0;
};

}  // namespace dmamba::train
