// Acting with a trained model, for a batch of environments whose episodes end at different times.
#pragma once

#include <string>
#include <vector>

#include "dmamba/model/dmamba.h"

namespace dmamba::model {

/// What a policy needs beside the model; the last three are those of training.
struct PolicyOptions {
  std::string kind = "windowed";  ///< windowed: re-reads the last K steps; recurrent: O(1) a step
  int64_t num_envs = 1;
  double rtg_scale = 1.0;         ///< raw return per model unit
  std::vector<float> state_mean;  ///< (state_dim,)
  std::vector<float> state_std;   ///< (state_dim,), > 0
};

/// One step of the loop: act(observations), step the environments, observe(rewards); reset() begins
/// an episode in any subset of the environments. With `padding: masked` both kinds agree to
/// rounding until an episode is longer than K. Not thread-safe; keeps the model, changes no
/// parameter.
///
/// The model computes where its parameters are, which must not change; tensors come and go on the
/// CPU. A step copies once to the device and once back: returns-to-go, times and the standardised
/// states are the CPU's, the windows and the layers' states stay on the device.
class Policy {
 public:
  /// Throws ConfigError for an unknown kind, num_envs < 1, or statistics of another size.
  Policy(DMamba model, PolicyOptions options);

  /// Begins an episode where `which` (num_envs,) bool is true; targets (num_envs,) float64, raw.
  /// Both on the CPU.
  void reset(const torch::Tensor& which, const torch::Tensor& targets);

  /// Actions (num_envs, act_dim) float32 in (-1, 1) for raw observations (num_envs, state_dim).
  torch::Tensor act(const torch::Tensor& observations);

  /// The raw rewards (num_envs,) of the last actions: returns-to-go go down, time goes on.
  void observe(const torch::Tensor& rewards);

 private:
  /// What the model sees of the newest step, on its device.
  struct Seen {
    torch::Tensor states;     // (num_envs, state_dim), standardised
    torch::Tensor rtg;        // (num_envs, 1), scaled
    torch::Tensor timesteps;  // (num_envs,) int64, below max_timestep
    torch::Tensor first;      // (num_envs,) bool
  };

  Seen on_device(const Seen& seen) const;
  torch::Tensor act_windowed(const Seen& seen);
  torch::Tensor act_recurrent(const Seen& seen);

  DMamba model_;
  PolicyOptions options_;
  torch::Device device_;  // the model's
  // On the CPU:
  torch::Tensor mean_, std_;  // (state_dim,)
  torch::Tensor rtg_;         // (num_envs,) float64, raw
  torch::Tensor timestep_;    // (num_envs,) int64
  torch::Tensor first_;       // (num_envs,) bool: no step taken yet in this episode
  // On the device:
  torch::Tensor last_action_;  // (num_envs, act_dim)
  // windowed: the last K steps, (num_envs, K, ...), newest last
  torch::Tensor states_, actions_, rtgs_, timesteps_, mask_;
  RecurrentState state_;  // recurrent
};

}  // namespace dmamba::model
