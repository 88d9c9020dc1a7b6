// The learning rate as a function of the step: linear warm-up, then constant or cosine.
#pragma once

#include <cstdint>

#include "dmamba/common/learning_rate.h"
#include "dmamba/config/config.h"

namespace dmamba::train {

/// The learning rate of optimizer step `step` (counted from 0):
///
///     warm-up       learning_rate * min((step + 1) / w, 1)
///     cosine        learning_rate * (f + (1 - f) (1 + cos(pi p)) / 2),  f = final_learning_rate,
///                   p = (step + 1 - w) / (e - w), at most 1
///     cosine-floor  learning_rate * max(f, (1 + cos(pi p)) / 2), as in the authors' Atari code,
///                   which lets p pass 1, so that the rate rises again
///
/// where w = warmup_steps and e = steps, or warmup_tokens and cosine_tokens over batch_size * K.
/// The last warm-up step runs at the full rate and the cosine's last step at f times it. The
/// warm-up is the authors' LambdaLR. Throws ConfigError for an unknown schedule.
double learning_rate(const config::Config& config, std::int64_t step);

/// The same as a function of the step that CUDA kernels can call. Throws likewise.
common::LearningRate learning_rate(const config::Config& config);

}  // namespace dmamba::train
