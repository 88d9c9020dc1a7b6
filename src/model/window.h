// What windowed policies keep of the last K steps.
#pragma once

#include <torch/types.h>

#include <string>

#include "dmamba/common/error.h"

namespace dmamba::model {

/// Throws ConfigError, opening with the policy's name, unless these options go with its kind.
inline void check_memory(const std::string& policy, const std::string& kind, int64_t context_length,
                         int64_t forget_after) {
  if (context_length < 0 || forget_after < 0) {
    throw ConfigError(policy + ": context_length and forget_after must be at least 0, got " +
                      std::to_string(context_length) + " and " + std::to_string(forget_after));
  }
  if (forget_after > 0 && kind != "recurrent") {
    throw ConfigError(policy + ": forget_after is for kind recurrent; a window forgets by itself");
  }
  if (context_length > 0 && kind != "windowed") {
    throw ConfigError(policy +
                      ": context_length is for kind windowed; a recurrent policy has no window, "
                      "but may forget (forget_after)");
  }
}

/// Moves a window one step on, where it lies: the oldest entry leaves, `newest` (num_envs, ...)
/// joins at the end.
inline void push(torch::Tensor& window, const torch::Tensor& newest) {
  window.copy_(torch::cat({window.slice(1, 1), newest.unsqueeze(1)}, 1));
}

}  // namespace dmamba::model
