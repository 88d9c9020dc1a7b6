// Acting with a trained model, for a batch of environments whose episodes end at different times.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "dmamba/model/dmamba.h"
#include "dmamba/model/external.h"

namespace dmamba::model {

class ActingModel;
class PolicyOnDevice;
class RecurrentCpu;
class RecurrentCuda;
struct Seen;

/// What a policy needs beside the model; rtg_scale and the statistics are those of training.
struct PolicyOptions {
  std::string kind = "windowed";  ///< windowed: re-reads the last K steps; recurrent: O(1) a step
  int64_t num_envs = 1;
  double rtg_scale = 1.0;         ///< raw return per model unit
  std::vector<float> state_mean;  ///< (state_dim,)
  std::vector<float> state_std;   ///< (state_dim,), > 0
  /// fp32 | bf16: of the matrices, with fp32 arithmetic. bf16 is for the recurrent kind on the CPU.
  std::string weights = "fp32";
  int64_t context_length = 0;  ///< K of the windowed kind; 0: the model's
  /// Steps after which the recurrent kind forgets: its layers begin anew, as at the start of a
  /// training segment, while returns-to-go and timesteps go on. 0: never.
  int64_t forget_after = 0;
};

/// One step of the loop: act(observations), step the environments, observe(rewards); reset() begins
/// an episode in any subset of the environments. With `padding: masked` both kinds agree to
/// rounding until an episode is longer than K. Not thread-safe; keeps the model, changes no
/// parameter.
///
/// The model computes where its parameters are, which must not change; tensors come and go on the
/// CPU. A step copies once to the device and once back: returns-to-go, times and the standardised
/// states are the CPU's, the windows and the layers' states stay on the device, where the step is
/// one CUDA graph. It is one launch of a kernel of its own for a recurrent policy of a float32
/// model with `mamba` layers of d_state 16, d_conv 4, expand 2, d_model a multiple of 32 up to 256,
/// from compute capability 9.0 on; its arithmetic is float32 whatever autocast and TF32 are set to.
///
/// A recurrent policy of a float32 model with `mamba` layers on a CPU with AVX2 or AVX-512 doesn't
/// go through torch's operators (autocast says nothing to it): it keeps its own copy of the
/// weights, renewed when torch has counted a change of the parameters, and takes an action in when
/// its reward is observed, so that act() has less to do.
class Policy {
 public:
  /// Throws ConfigError for an unknown kind, num_envs < 1, statistics of another size, or bf16
  /// weights where they are not to be had.
  Policy(const DMamba& model, PolicyOptions options);
  /// Of the windowed kind alone; its steps are no CUDA graph. What its forward throws comes out of
  /// act().
  Policy(const ExternalModel& model, PolicyOptions options);
  Policy(Policy&&) noexcept;
  ~Policy();

  /// Begins an episode where `which` (num_envs,) bool is true; targets (num_envs,) float64, raw.
  /// Both on the CPU.
  void reset(const torch::Tensor& which, const torch::Tensor& targets);

  /// Actions (num_envs, act_dim) float32 in (-1, 1) for raw observations (num_envs, state_dim).
  torch::Tensor act(const torch::Tensor& observations);

  /// The raw rewards (num_envs,) of the last actions: returns-to-go go down, time goes on.
  void observe(const torch::Tensor& rewards);

 private:
  Policy(std::unique_ptr<ActingModel> acting, DMamba model, PolicyOptions options);
  Seen as_trained(const torch::Tensor& observations) const;
  torch::Tensor answer(const Seen& seen);
  torch::Tensor answer_on_device(const Seen& seen);
  torch::Tensor act_windowed(const Seen& seen);
  torch::Tensor act_recurrent(const Seen& seen);

  std::unique_ptr<ActingModel> acting_;
  DMamba model_;  // the same; null: an external one
  PolicyOptions options_;
  torch::Device device_;  // the model's
  // On the CPU:
  torch::Tensor rtg_;       // (num_envs,) float64, raw
  torch::Tensor timestep_;  // (num_envs,) int64
  torch::Tensor first_;     // (num_envs,) bool: no step taken yet in this episode
  // On the device:
  torch::Tensor last_action_;  // (num_envs, act_dim)
  // windowed: the last K steps, (num_envs, K, ...), newest last
  torch::Tensor states_, actions_, rtgs_, timesteps_, mask_;
  RecurrentState state_;  // recurrent, unless it is an engine's
  std::unique_ptr<RecurrentCpu> engine_;
  std::unique_ptr<RecurrentCuda> cuda_engine_;
  std::unique_ptr<PolicyOnDevice> on_device_;  // on CUDA
  bool acted_ = false;                         // since the last observe()
};

}  // namespace dmamba::model
