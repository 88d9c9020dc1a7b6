// Parameters of a training step's opening. Free of torch and of CUDA.
#pragma once

#include <cstdint>

#include "include/dmamba/common/learning_rate.h"

namespace dmamba::kernels {

/// Recorded episodes in the device's memory, as a batch wants them: states standardised,
/// returns-to-go scaled. Row-major, float32.
struct Trajectories {
  const float* states;         // (transitions, state_dim)
  const float* actions;        // (transitions, act_dim)
  const float* returns_to_go;  // (transitions,)
  const int64_t* starts;       // (episodes + 1,) first transition of each, then their total
  const float* padding_state;  // (state_dim,)
  float padding_action;
  int64_t episodes, state_dim, act_dim;
};

/// Where a batch is written; shapes as data::BatchView.
struct SegmentBatch {
  float* states;
  float* actions;
  float* returns_to_go;
  int64_t* timesteps;
  bool* mask;
  int64_t batch_size, context_length, max_timestep;
};

/// Recorded games in the device's memory, returns-to-go scaled.
struct Games {
  const uint8_t* frames;       // (transitions, 84, 84)
  const int32_t* actions;      // (transitions,)
  const float* returns_to_go;  // (transitions,)
  const int64_t* starts;       // (episodes + 1,) first transition of each, then their total
  int64_t episodes;
};

/// Where a batch of them is written; shapes as data::FrameBatchView.
struct StripBatch {
  uint8_t* strips;
  int64_t* actions;
  float* returns_to_go;
  int64_t* timesteps;
  bool* mask;
  int64_t batch_size, context_length, max_timestep;
};

struct DrawStripsParams {
  const int64_t* step;  // on the device: optimizer steps done
  uint64_t seed;
  int64_t first_sample;  // of the step's, which the first row of the batch is
  Games data;
  StripBatch batch;
};

/// What the optimizer's kernel reads: float32 scalars side by side.
struct StepScalars {
  float learning_rate;
  float step_size;          // learning_rate / (1 - beta1^n) of the n-th update
  float second_correction;  // sqrt(1 - beta2^n)
  float stopped;            // not 0: SkippedSteps::stopped_at was not 0 when the step began
};

/// Steps whose loss or gradient was not finite, and which moved nothing.
struct SkippedSteps {
  int64_t total;
  int64_t in_a_row;    // up to now
  int64_t stopped_at;  // the number, from 1, of the step that was one too many; 0: none was
};

/// All that a step needs which depends on its number alone, so that a captured graph, which always
/// runs with the same arguments, does the next step each time.
struct BeginStepParams {
  const int64_t* step;      // on the device: optimizer steps done
  const int64_t* set_step;  // likewise, of those on the step's set; null: there is one set
  uint64_t seed;
  int64_t first_sample;  // of the step's, which the first row of the batch is
  common::LearningRate learning_rate;
  double beta1, beta2;
  const SkippedSteps* skipped;
  const int64_t* set_skipped;  // on the step's set; null: there is one set
  StepScalars* scalars;        // (2,): of the step, and of what belongs to its set
  int64_t* dropout_keys;       // (n_keys,)
  int64_t n_keys;
  Trajectories data;   // not read where batch_size is 0
  SegmentBatch batch;  // batch_size 0: the batch comes from elsewhere
};

}  // namespace dmamba::kernels
