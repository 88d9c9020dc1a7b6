// The memory of a batch, and its way to the device.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Event.h>

#include <functional>
#include <optional>
#include <vector>

namespace dmamba::train {

/// Tensors of a batch side by side in one buffer on the device. Where batches are drawn on the host
/// for another device, two pinned buffers take turns: one is drawn while the other's copy may be
/// under way. Not thread-safe.
class StagedBatch {
 public:
  struct Part {
    std::vector<int64_t> sizes;
    at::ScalarType type;
  };
  using Tensors = std::vector<at::Tensor>;  // in the order of the parts

  /// `staged`: whether batches are drawn on the host.
  StagedBatch(const std::vector<Part>& parts, at::Device device, bool staged);

  /// The tensors on the device: the same for good, so that a CUDA graph may read them.
  const Tensors& tensors() const { return tensors_; }

  /// Has `draw` fill the tensors of a host buffer, which is then copied in the order of the current
  /// stream. The host waits only where the device is two whole batches behind.
  void stage(const std::function<void(const Tensors&)>& draw);

 private:
  struct Host {
    at::Tensor buffer;
    Tensors tensors;
    std::optional<c10::Event> copied;
  };

  at::Device device_;
  at::Tensor buffer_;
  Tensors tensors_;
  std::vector<Host> hosts_;
  size_t turn_ = 0;
};

}  // namespace dmamba::train
