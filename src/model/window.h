// What windowed policies keep of the last K steps.
#pragma once

#include <torch/types.h>

namespace dmamba::model {

/// Moves a window one step on, where it lies: the oldest entry leaves, `newest` (num_envs, ...)
/// joins at the end.
inline void push(torch::Tensor& window, const torch::Tensor& newest) {
  window.copy_(torch::cat({window.slice(1, 1), newest.unsqueeze(1)}, 1));
}

}  // namespace dmamba::model
