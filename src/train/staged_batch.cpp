// One buffer a batch, two of them in pinned memory where the device is not the CPU.
#include "src/train/staged_batch.h"

#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/torch.h>

namespace dmamba::train {
namespace {

using at::Tensor;

constexpr int64_t kAlignment = 256;  // bytes, of each part; what CUDA's own allocations have
constexpr size_t kHosts = 2;

int64_t bytes_of(const StagedBatch::Part& part) {
  return c10::multiply_integers(part.sizes) * static_cast<int64_t>(c10::elementSize(part.type));
}

int64_t aligned(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

StagedBatch::Tensors views(const Tensor& buffer, const std::vector<StagedBatch::Part>& parts) {
  StagedBatch::Tensors tensors;
  int64_t offset = 0;
  for (const auto& part : parts) {
    tensors.push_back(buffer.narrow(0, offset, bytes_of(part)).view(part.type).view(part.sizes));
    offset += aligned(bytes_of(part));
  }
  return tensors;
}

}  // namespace

StagedBatch::StagedBatch(const std::vector<Part>& parts, at::Device device, bool staged)
    : device_(device) {
  int64_t total = 0;
  for (const Part& part : parts) total += aligned(bytes_of(part));
  const auto bytes = torch::TensorOptions().dtype(torch::kByte);
  buffer_ = torch::zeros({total}, bytes.device(device_));
  tensors_ = views(buffer_, parts);
  if (!staged) return;
  if (device_.is_cpu()) {
    hosts_.push_back({buffer_, tensors_, std::nullopt});
    return;
  }
  for (size_t i = 0; i < kHosts; ++i) {
    const Tensor pinned = torch::zeros({total}, bytes.pinned_memory(true));
    hosts_.push_back({pinned, views(pinned, parts), c10::Event(device_.type())});
  }
}

void StagedBatch::stage(const std::function<void(const Tensors&)>& draw) {
  Host& host = hosts_[turn_];
  turn_ = (turn_ + 1) % hosts_.size();
  if (host.copied) host.copied->synchronize();
  draw(host.tensors);
  if (host.copied) {
    buffer_.copy_(host.buffer, /*non_blocking=*/true);
    host.copied->record(c10::impl::VirtualGuardImpl(device_.type()).getStream(device_));
  }
}

}  // namespace dmamba::train
