// Which tokens an environment step has: (return-to-go, state, action), or fewer of them.
#pragma once

#include <cstdint>
#include <vector>

#include "dmamba/config/config.h"

namespace dmamba::nn {

/// The kinds in their order within a step, numbered 0 return-to-go, 1 state, 2 action.
class TokenKinds {
 public:
  explicit TokenKinds(const config::ModelConfig& config)
      : rtg_(config.rtg == "token"), actions_(config.past_actions == "token") {}

  bool rtg() const { return rtg_; }
  bool actions() const { return actions_; }
  bool all() const { return rtg_ && actions_; }
  int64_t count() const { return 1 + rtg_ + actions_; }

  /// Place of the state's token among a step's.
  int64_t state() const { return rtg_ ? 1 : 0; }

  /// Place of the kind that a step of recurrent inference begins with: the action before.
  int64_t first_of_step() const { return actions_ ? count() - 1 : 0; }

  /// What of (return-to-go, state, action) is there, in order.
  template <class T>
  std::vector<T> choose(T rtg, T state, T action) const {
    std::vector<T> chosen;
    if (rtg_) chosen.push_back(std::move(rtg));
    chosen.push_back(std::move(state));
    if (actions_) chosen.push_back(std::move(action));
    return chosen;
  }

 private:
  bool rtg_, actions_;
};

}  // namespace dmamba::nn
