// See the header for the formulas.
#include "dmamba/train/schedule.h"

#include "dmamba/common/error.h"

namespace dmamba::train {
namespace {

using Shape = common::LearningRate::Shape;

Shape shape_of(const std::string& schedule) {
  if (schedule == "constant") return Shape::kConstant;
  if (schedule == "cosine") return Shape::kCosine;
  if (schedule == "cosine-floor") return Shape::kCosineFloor;
  throw ConfigError("key 'training.schedule': '" + schedule +
                    "' is not allowed; must be one of constant, cosine, cosine-floor");
}

}  // namespace

common::LearningRate learning_rate(const config::Config& config) {
  const config::TrainingConfig& t = config.training;
  const double tokens_a_step =
      static_cast<double>(t.batch_size) * static_cast<double>(config.model.context_length);
  const auto in_steps = [&](int64_t tokens, int64_t steps) {
    return tokens > 0 ? static_cast<double>(tokens) / tokens_a_step : static_cast<double>(steps);
  };
  return {t.learning_rate, t.final_learning_rate, in_steps(t.warmup_tokens, t.warmup_steps),
          in_steps(t.cosine_tokens, t.steps), shape_of(t.schedule)};
}

double learning_rate(const config::Config& config, std::int64_t step) {
  return learning_rate(config).at(step);
}

}  // namespace dmamba::train
