// One buffer a batch, two of them in pinned memory where the device is not the CPU.
#include "dmamba/train/batch_loader.h"

#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/torch.h>

#include <array>

#include "src/ops/cuda_only.h"

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

/// The whole recording as batches hold it.
ops::cuda_only::TrajectoryTensors on_device(const data::SegmentSampler& sampler,
                                            torch::Device device) {
  const data::TrajectoryStore& store = sampler.store();
  const int64_t count = store.num_transitions(), episodes = store.num_episodes();
  const Tensor states = torch::empty({count, store.state_dim()});
  const Tensor actions = torch::empty({count, store.act_dim()});
  const Tensor returns = torch::empty({count}), starts = torch::empty({episodes + 1}, at::kLong);
  sampler.read_all(states.mutable_data_ptr<float>(), actions.mutable_data_ptr<float>(),
                   returns.mutable_data_ptr<float>());
  for (int64_t i = 0; i < episodes; ++i) {
    starts.mutable_data_ptr<int64_t>()[i] = store.episode(i).start;
  }
  starts.mutable_data_ptr<int64_t>()[episodes] = count;
  const std::vector<float>& padding = sampler.padding_state();
  const Tensor padding_state = torch::tensor(at::ArrayRef<float>(padding), torch::kFloat);
  return {states.to(device), actions.to(device),       returns.to(device),
          starts.to(device), padding_state.to(device), sampler.padding_action()};
}

}  // namespace

BatchLoader::BatchLoader(data::SegmentSampler sampler, torch::Device device, bool resident)
    : sampler_(std::move(sampler)), device_(device) {
  const Layout layout(sampler_);
  const auto bytes = torch::TensorOptions().dtype(torch::kByte);
  buffer_ = torch::zeros({layout.bytes}, bytes.device(device_));
  batch_ = layout.batch_in(buffer_);
  if (device_.is_cpu()) {
    hosts_.push_back({buffer_, batch_, std::nullopt});
    return;
  }
  if (resident) {
    resident_ = std::make_unique<ops::cuda_only::TrajectoryTensors>(on_device(sampler_, device_));
    return;
  }
  for (size_t i = 0; i < kHosts; ++i) {
    const Tensor pinned = torch::zeros({layout.bytes}, bytes.pinned_memory(true));
    hosts_.push_back({pinned, layout.batch_in(pinned), c10::Event(device_.type())});
  }
}

BatchLoader::~BatchLoader() = default;
BatchLoader::BatchLoader(BatchLoader&&) noexcept = default;

int64_t BatchLoader::resident_bytes(const data::TrajectoryStore& store) {
  const int64_t row = 4 * (store.state_dim() + store.act_dim() + 1);
  return store.num_transitions() * row + 8 * store.num_episodes();
}

const Batch& BatchLoader::load(int64_t step) {
  if (resident_) return batch_;
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
