// Parameters of the action head with its loss. Free of torch and of CUDA.
#pragma once

#include "kernels/normalization/params.h"

namespace dmamba::kernels {

/// action = tanh(weight y + bias) for the state's token of each step (the second of three);
/// loss = sum over real steps of |action - target|^2 / (act_dim * number of real steps).
/// y (steps, 3, width) contiguous, of `storage`; all else float32.
struct ActionHeadParams {
  int64_t steps, width, act_dim;
  Storage storage;
  const void* y;
  const float* weight;   // (act_dim, width)
  const float* bias;     // (act_dim,)
  const float* targets;  // (steps, act_dim)
  const bool* mask;      // (steps,) false: padding
  float* slopes;         // (steps, act_dim): d loss / d (weight y + bias)
  float* losses;         // (action_head_blocks(steps),): the loss is their sum
};

/// dy = dloss * slopes weight on the state's tokens, zero on the others; parts
/// (action_head_blocks(steps), act_dim (width + 1)): the gradients of weight and then of bias, as
/// column sums.
struct ActionHeadBackwardParams {
  int64_t steps, width, act_dim;
  Storage storage;
  const void* y;
  const float* weight;
  const float* slopes;
  const float* dloss;  // one number, on the device
  void* dy;
  float* parts;
};

constexpr int64_t kHeadSteps = 8;  // of a block

constexpr int64_t action_head_blocks(int64_t steps) {
  return (steps + kHeadSteps - 1) / kHeadSteps;
}

}  // namespace dmamba::kernels
