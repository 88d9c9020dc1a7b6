// One buffer a batch, two of them in pinned memory where the device is not the CPU.
#include "dmamba/train/batch_loader.h"

#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/torch.h>

#include <array>

namespace dmamba::train {
namespace {

using torch::Tensor;

constexpr int64_t kAlignment = 256;  // bytes, of each part; what CUDA's own allocations have
constexpr size_t kHosts = 2;         // one is drawn while the other's copy may be under way

/// Shape and type of one tensor of a batch, and where it lies in the buffer.
struct Part {
  std::vector<int64_t> sizes;
  at::ScalarType type;
  int64_t offset = 0;
  int64_t bytes = 0;
};

struct Layout {
  std::array<Part, 5> parts;  // in the order of Batch
  int64_t bytes = 0;

  explicit Layout(const data::SegmentSampler& sampler) {
    const int64_t batch = sampler.options().batch_size, K = sampler.options().context_length;
    parts = {Part{{batch, K, sampler.store().state_dim()}, at::kFloat},
             Part{{batch, K, sampler.store().act_dim()}, at::kFloat},
             Part{{batch, K, 1}, at::kFloat}, Part{{batch, K}, at::kLong},
             Part{{batch, K}, at::kBool}};
    for (Part& part : parts) {
      part.offset = bytes;
      part.bytes =
          c10::multiply_integers(part.sizes) * static_cast<int64_t>(c10::elementSize(part.type));
      bytes += (part.bytes + kAlignment - 1) / kAlignment * kAlignment;
    }
  }

  Batch batch_in(const Tensor& buffer) const {
    const auto view = [&](size_t i) {
      const Part& part = parts[i];
      return buffer.narrow(0, part.offset, part.bytes).view(part.type).view(part.sizes);
    };
    return {view(0), view(1), view(2), view(3), view(4)};
  }
};

}  // namespace

BatchLoader::BatchLoader(data::SegmentSampler sampler, torch::Device device)
    : sampler_(std::move(sampler)), device_(device) {
  const Layout layout(sampler_);
  const auto bytes = torch::TensorOptions().dtype(torch::kByte);
  buffer_ = torch::zeros({layout.bytes}, bytes.device(device_));
  batch_ = layout.batch_in(buffer_);
  if (device_.is_cpu()) {
    hosts_.push_back({buffer_, batch_, std::nullopt});
    return;
  }
  for (size_t i = 0; i < kHosts; ++i) {
    const Tensor pinned = torch::zeros({layout.bytes}, bytes.pinned_memory(true));
    hosts_.push_back({pinned, layout.batch_in(pinned), c10::Event(device_.type())});
  }
}

const Batch& BatchLoader::load(int64_t step) {
  Host& host = hosts_[turn_];
  turn_ = (turn_ + 1) % hosts_.size();
  if (host.copied) host.copied->synchronize();
  const Batch& b = host.batch;
  sampler_.sample(static_cast<uint64_t>(step),
                  {b.states.mutable_data_ptr<float>(), b.actions.mutable_data_ptr<float>(),
                   b.returns_to_go.mutable_data_ptr<float>(),
                   b.timesteps.mutable_data_ptr<int64_t>(), b.mask.mutable_data_ptr<bool>()});
  if (host.copied) {
    buffer_.copy_(host.buffer, /*non_blocking=*/true);
    host.copied->record(c10::impl::VirtualGuardImpl(device_.type()).getStream(device_));
  }
  return batch_;
}

}  // namespace dmamba::train
