// The recurrent policy's step on a CPU without torch's operators, which cost more than the
// arithmetic where a few tokens go through the model.
//
// A step has two halves, so that an action waits for two tokens only: act() reads return-to-go and
// state, follow() reads what was done, while the environment or the robot moves. Each half reads
// every weight once. Together they compute what DMambaImpl::step does, to rounding, with the same
// bits for any number of threads and beside any other environments.
#pragma once

#include <memory>
#include <vector>

#include "src/model/parameter_watch.h"
#include "src/model/recurrent_weights.h"

namespace dmamba::model {

/// Weights are copied, and copied again in the first call after a ParameterWatch has seen a change.
class RecurrentCpu {
 public:
  /// Whether this model can be computed here: float32 on the CPU, `mamba` in every layer.
  static bool supports(const DMambaImpl& model);

  /// The model must be supported. `storage` of the weights: float32 or bfloat16; all arithmetic is
  /// float32, by the vector kernels in use now.
  RecurrentCpu(DMamba model, int64_t num_envs, kernels::Storage storage);

  /// Actions (num_envs, act_dim) for returns_to_go (num_envs, 1), scaled, and states (num_envs,
  /// state_dim), standardised, both float32, at timesteps (num_envs,) int64, those past the model's
  /// table taken as its last; first (num_envs,) bool begins an episode.
  torch::Tensor act(const torch::Tensor& returns_to_go, const torch::Tensor& states,
                    const torch::Tensor& timesteps, const torch::Tensor& first);

  /// Takes in what was done: actions (num_envs, act_dim) float32, the timesteps those of act().
  void follow(const torch::Tensor& actions, const torch::Tensor& timesteps);

 private:
  struct Tokens;
  struct Group;

  void repack_if_changed();
  size_t scratch_bytes() const;
  void advance(const Tokens& tokens);
  void embed(const Tokens& tokens, Group& group) const;
  void run_layer(size_t index, const Group& group, int64_t from);
  void run_convolution(size_t index, const Group& group);
  void run_scan(size_t index, const Group& group);
  void predict(const Group& group, float* actions) const;

  DMamba model_;
  int64_t num_envs_;
  kernels::Storage storage_;
  ParameterWatch watch_;
  std::unique_ptr<const RecurrentWeights> weights_;
  // A layer's: (num_envs, d_conv - 1, d_inner) and (num_envs, d_state, d_inner).
  std::vector<torch::Tensor> conv_states_, ssm_states_;
};

}  // namespace dmamba::model
