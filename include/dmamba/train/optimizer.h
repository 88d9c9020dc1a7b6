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
};

/// Keeps references to the parameters, which must stay on the device where they are; not
/// thread-safe.
class AdamW {
 public:
  /// Splits the parameters by `training.decay`: with `matrices`, A_log, D, norms, biases and
  /// embeddings are not decayed.
  AdamW(const torch::nn::Module& model, const config::TrainingConfig& training);

  /// Scales the gradients so that their global norm is at most training.gradient_clip, applies one
  /// step, forgets the gradients. Returns the norm before the clip, a scalar tensor; nothing waits
  /// for the device. Parameters that do not require a gradient at this moment keep their bits, and
  /// their moments too.
  torch::Tensor step(double learning_rate);

  /// The same on CUDA, from what lies on the device: the step's scalars in
  /// `state`, to whose sums `loss` (a float32 scalar) and the norm are added and whose step is
  /// counted. Bits differ from step()'s in the last place.
  torch::Tensor step_on_device(const torch::Tensor& loss, const ops::cuda_only::StepState& state);

  /// From now on step_on_device() keeps copies beside parameters, to which the map leads:
  /// -exp(A_log), and with `bf16` every matrix in bfloat16.
  using Mirrors = std::unordered_map<const c10::TensorImpl*, torch::Tensor>;
  const Mirrors& make_mirrors(bool bf16);
  /// Copies the parameters anew, which somebody else may have changed.
  void refresh_mirrors();

  /// Steps done, which the next step() begins from.
  void set_steps(int64_t steps);

  /// Parameters that decay first, then the others.
  const std::vector<Slot>& slots() const { return slots_; }

 private:
  config::TrainingConfig training_;
  std::vector<Slot> slots_;
  size_t n_decayed_ = 0;
  torch::Tensor step_count_;  // of step(), on the parameters' device, where the kernel reads it
  Mirrors mirrors_;
};

}  // namespace dmamba::train
