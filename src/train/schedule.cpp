// See the header for the formulas.
#include "dmamba/train/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "dmamba/common/error.h"

namespace dmamba::train {

double learning_rate(const config::TrainingConfig& training, std::int64_t step) {
  const bool cosine = training.schedule == "cosine";
  if (!cosine && training.schedule != "constant") {
    throw ConfigError("key 'training.schedule': '" + training.schedule +
                      "' is not allowed; must be one of constant, cosine");
  }
  const double done = static_cast<double>(step) + 1.0;
  const double warmup = static_cast<double>(training.warmup_steps);
  if (done < warmup) return training.learning_rate * (done / warmup);
  if (!cosine) return training.learning_rate;
  const double rest = static_cast<double>(training.steps) - warmup;
  const double progress = rest > 0.0 ? std::min((done - warmup) / rest, 1.0) : 0.0;
  const double final_rate = training.final_learning_rate;
  const double fall = 0.5 * (1.0 + std::cos(std::numbers::pi * progress));
  return training.learning_rate * (final_rate + (1.0 - final_rate) * fall);
}

}  // namespace dmamba::train
