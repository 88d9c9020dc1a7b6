// A policy's step on CUDA: one copy there, one graph or one launch, one copy back.
#pragma once

#include <torch/types.h>

#include <functional>

#include "dmamba/model/dmamba.h"
#include "src/model/device_step.h"

namespace dmamba::model {

/// What the model sees of the newest step of each environment.
struct Seen {
  torch::Tensor states;     // (num_envs, state_dim), standardised
  torch::Tensor rtg;        // (num_envs, 1), scaled
  torch::Tensor timesteps;  // (num_envs,) int64, below max_timestep
  torch::Tensor first;      // (num_envs,) bool
};

class PolicyOnDevice {
 public:
  PolicyOnDevice(int64_t num_envs, int64_t state_dim, int64_t act_dim, torch::Device device);

  /// Takes a step from the CPU.
  void copy_in(const torch::Tensor& states, const torch::Tensor& rtg,
               const torch::Tensor& timesteps, const torch::Tensor& first);

  /// The step on the device; to be called by the work, which may be recorded.
  Seen seen() const;

  /// The same as it was copied: (num_envs, state_dim + 3) float32, the state, return-to-go,
  /// timestep, first.
  const torch::Tensor& rows() const { return device_; }

  /// Actions (num_envs, act_dim) from the device; waits for them.
  torch::Tensor copy_out(const torch::Tensor& actions);

  /// Does the work, which may depend on the device's memory and on the model alone.
  void run(const torch::nn::Module& model, const std::function<void()>& work) {
    step_.run(model, work);
  }

 private:
  torch::Tensor host_;     // (num_envs, state_dim + 3), pinned
  torch::Tensor answers_;  // (num_envs, act_dim), pinned
  torch::Tensor device_;   // float32 holds times exactly (below 2^24)
  DeviceStep step_;
};

}  // namespace dmamba::model
