// The way to the device.
#include "src/model/policy_on_device.h"

#include <torch/torch.h>

#include <algorithm>

namespace dmamba::model {

using torch::Tensor;

PolicyOnDevice::PolicyOnDevice(int64_t num_envs, int64_t state_dim, int64_t act_dim,
                               torch::Device device)
    : host_(torch::zeros({num_envs, state_dim + 3}, torch::TensorOptions().pinned_memory(true))),
      answers_(torch::zeros({num_envs, act_dim}, torch::TensorOptions().pinned_memory(true))),
      device_(torch::zeros({num_envs, state_dim + 3}, torch::TensorOptions(device))),
      step_(device) {}

void PolicyOnDevice::copy_in(const Tensor& states, const Tensor& rtg, const Tensor& timesteps,
                             const Tensor& first) {
  const int64_t n = states.size(1);
  const float *state = states.const_data_ptr<float>(), *scaled = rtg.const_data_ptr<float>();
  const int64_t* time = timesteps.const_data_ptr<int64_t>();
  const bool* begins = first.const_data_ptr<bool>();
  float* row = host_.mutable_data_ptr<float>();
  for (int64_t i = 0; i < states.size(0); ++i, row += n + 3) {
    std::copy_n(state + i * n, n, row);
    row[n] = scaled[i];
    row[n + 1] = static_cast<float>(time[i]);
    row[n + 2] = begins[i] ? 1.0F : 0.0F;
  }
  device_.copy_(host_, /*non_blocking=*/true);  // the answer's way back waits for it
}

Seen PolicyOnDevice::seen() const {
  const int64_t n = device_.size(1) - 3;
  return {device_.slice(1, 0, n), device_.slice(1, n, n + 1),
          device_.select(1, n + 1).to(torch::kLong), device_.select(1, n + 2).to(torch::kBool)};
}

Tensor PolicyOnDevice::copy_out(const Tensor& actions) {
  answers_.copy_(actions, /*non_blocking=*/false);
  return answers_.clone();
}

}  // namespace dmamba::model
