// See the header for the formulas.
#include "dmamba/train/schedule.h"

#include "dmamba/common/error.h"

namespace dmamba::train {

common::LearningRate learning_rate(const config::TrainingConfig& training) {
  const bool cosine = training.schedule == "cosine";
  if (!cosine && training.schedule != "constant") {
    throw ConfigError("key 'training.schedule': '" + training.schedule +
                      "' is not allowed; must be one of constant, cosine");
  }
  return {training.learning_rate, training.final_learning_rate, training.warmup_steps,
          training.steps, cosine};
}

double learning_rate(const config::TrainingConfig& training, std::int64_t step) {
  return learning_rate(training).at(step);
}

}  // namespace dmamba::train
