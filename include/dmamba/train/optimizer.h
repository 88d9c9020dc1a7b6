// AdamW (Loshchilov and Hutter, arXiv 1711.05101) over named parameters: on the CPU through ATen's
// fused kernel, on CUDA through kernels/optimizer.
#pragma once

#include <torch/nn.h>

#include <string>
#include <unordered_map>
#include <vector>

#include "dmamba/config/config.h"

namespace dmamba::ops::cuda_only {
struct StepState;
}

namespace dmamba::train {

/// A parameter and its moments. Names are the model's, so that a checkpoint can be read by anyone.
struct Slot {
  std::string name;
  torch::Tensor parameter, first_moment, second_moment;
  bool is_matrix = false;  // a product's weight: no vector, no embedding, not A_log
  double rate = 1.0;       // of the learning rate
  int64_t set = -1;        // of several, the one that it belongs to; -1: to all of them
};

/// Keeps references to the parameters, which must stay on the device where they are; not
/// thread-safe.
class AdamW {
 public:
  /// Splits the parameters by `training.decay`: with `matrices`, A_log, D, norms, biases and
  /// embeddings are not decayed. `learning_rates`: those of config::TransferConfig; the decay of a
  /// step follows the parameter's own rate. Throws ConfigError for an entry that matches nothing.
  AdamW(const torch::nn::Module& model, const config::TrainingConfig& training,
        const std::vector<std::string>& learning_rates = {});

  /// Scales the gradients so that their global norm is at most training.gradient_clip, applies one
  /// step, forgets the gradients. Returns the norm before the clip, a scalar tensor. Where it is
  /// not finite, nothing moves and no step is counted. Parameters that do not require a gradient at
  /// this moment keep their bits, and their moments too; so do those of other sets than `set`,
  /// whose steps are counted apart.
  torch::Tensor step(double learning_rate, int64_t set = 0);

  /// The same on CUDA, from what lies on the device: the step's scalars in
  /// `state`, to whose sums `loss` (a float32 scalar) and the norm are added and whose step is
  /// counted. Nothing moves where one of the two is not finite; the state says how often. Nothing
  /// waits for the device. Bits differ from step()'s in the last place.
  torch::Tensor step_on_device(const torch::Tensor& loss, const ops::cuda_only::StepState& state,
                               int64_t set = 0);

  void forget_gradients();

  /// From now on step_on_device() keeps copies beside parameters, to which the map leads:
  /// -exp(A_log), and with `bf16` every matrix in bfloat16.
  using Mirrors = std::unordered_map<const c10::TensorImpl*, torch::Tensor>;
  const Mirrors& make_mirrors(bool bf16);
  /// Copies the parameters anew, which somebody else may have changed.
  void refresh_mirrors();

  /// Steps that have moved the moments, which the next step() begins from.
  void set_steps(int64_t steps);
  /// Those of a set, of several.
  void set_steps_of_set(size_t set, int64_t steps);

  /// Parameters that decay first, then the others.
  const std::vector<Slot>& slots() const { return slots_; }

 private:
  double weight_decay(size_t i) const;                   // of slot i
  bool is_trained(const Slot& slot, int64_t set) const;  // in a step on that set

  config::TrainingConfig training_;
  std::vector<Slot> slots_;
  size_t n_decayed_ = 0;
  torch::Tensor step_count_;  // of step(), on the parameters' device, where the kernel reads it
  std::vector<torch::Tensor> set_counts_;  // likewise, of parameters that belong to a set
  Mirrors mirrors_;
};

}  // namespace dmamba::train
