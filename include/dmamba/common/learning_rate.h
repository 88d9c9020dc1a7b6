// The learning rate's formula: one source for the host and for CUDA.
#pragma once

#include <cmath>
#include <cstdint>

#include "philox.h"

namespace dmamba::common {

/// Linear warm-up, then constant or a cosine; see train::learning_rate for the formula.
struct LearningRate {
  double peak;
  double final_fraction;  ///< of the cosine
  std::int64_t warmup_steps, steps;
  bool cosine;

  /// The rate of optimizer step `step`, counted from 0.
  DMAMBA_HOST_DEVICE double at(std::int64_t step) const {
    constexpr double kPi = 3.141592653589793;
    const double done = static_cast<double>(step) + 1.0;
    const double warmup = static_cast<double>(warmup_steps);
    if (done < warmup) return peak * (done / warmup);
    if (!cosine) return peak;
    const double rest = static_cast<double>(steps) - warmup;
    double progress = rest > 0.0 ? (done - warmup) / rest : 0.0;
    if (progress > 1.0) progress = 1.0;
    const double fall = 0.5 * (1.0 + cos(kPi * progress));
    return peak * (final_fraction + (1.0 - final_fraction) * fall);
  }
};

}  // namespace dmamba::common
