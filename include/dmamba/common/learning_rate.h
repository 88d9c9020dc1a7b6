// The learning rate's formula: one source for the host and for CUDA.
#pragma once

#include <cmath>
#include <cstdint>

#include "philox.h"

namespace dmamba::common {

/// Linear warm-up, then constant or a cosine; see train::learning_rate for the formula.
struct LearningRate {
  enum class Shape { kConstant, kCosine, kCosineFloor };

  double peak;
  double final_fraction;  ///< of the cosine
  double warmup, end;     ///< steps, not always whole ones; of the cosine's end
  Shape shape;

  /// The rate of optimizer step `step`, counted from 0.
  DMAMBA_HOST_DEVICE double at(std::int64_t step) const {
    constexpr double kPi = 3.141592653589793;
    const double done = static_cast<double>(step) + 1.0;
    if (done < warmup) return peak * (done / warmup);
    if (shape == Shape::kConstant) return peak;
    const double rest = end - warmup;
    double progress = rest > 0.0 ? (done - warmup) / rest : 0.0;
    if (progress > 1.0) progress = 1.0;
    const double fall = 0.5 * (1.0 + cos(kPi * progress));
    if (shape == Shape::kCosineFloor) return peak * (fall > final_fraction ? fall : final_fraction);
    return peak * (final_fraction + (1.0 - final_fraction) * fall);
  }
};

}  // namespace dmamba::common
