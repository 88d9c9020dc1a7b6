// The learning rate as a function of the step: linear warm-up, then constant or cosine.
#pragma once

#include <cstdint>

#include "dmamba/common/learning_rate.h"
#include "dmamba/config/config.h"

namespace dmamba::train {

/// The learning rate of optimizer step `step` (counted from 0):
///
///     warm-up   learning_rate * min((step + 1) / warmup_steps, 1)
///     cosine    learning_rate * (f + (1 - f) (1 + cos(pi p)) / 2),  f = final_learning_rate,
///               p = (step + 1 - warmup_steps) / (steps - warmup_steps), at most 1
///
/// so the last warm-up step runs at the full rate and the last step of all at f times it. The
/// warm-up is the authors' LambdaLR. Throws ConfigError for an unknown schedule.
double learning_rate(const config::TrainingConfig& training, std::int64_t step);

/// The same as a function of the step that CUDA kernels can call. Throws likewise.
common::LearningRate learning_rate(const config::TrainingConfig& training);

}  // namespace dmamba::train
