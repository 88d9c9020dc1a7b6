// The way to the device.
#include "src/model/policy_on_device.h"

#include <torch/torch.h>

namespace dmamba::model {

using torch::Tensor;

PolicyOnDevice::PolicyOnDevice(int64_t num_envs, int64_t state_dim, torch::Device device)
    : host_(torch::zeros({num_envs, state_dim + 3}, torch::TensorOptions().pinned_memory(true))),
      device_(torch::zeros({num_envs, state_dim + 3}, torch::TensorOptions(device))),
      step_(device) {}

void PolicyOnDevice::copy_in(const Tensor& states, const Tensor& rtg, const Tensor& timesteps,
                             const Tensor& first) {
  const int64_t n = states.size(1);
  host_.slice(1, 0, n).copy_(states);
  host_.slice(1, n, n + 1).copy_(rtg);
  host_.select(1, n + 1).copy_(timesteps);
  host_.select(1, n + 2).copy_(first);
  device_.copy_(host_, /*non_blocking=*/true);  // the answer's way back waits for it
}

Seen PolicyOnDevice::seen() const {
  const int64_t n = device_.size(1) - 3;
  return {device_.slice(1, 0, n), device_.slice(1, n, n + 1),
          device_.select(1, n + 1).to(torch::kLong), device_.select(1, n + 2).to(torch::kBool)};
}

}  // namespace dmamba::model
