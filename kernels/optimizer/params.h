// Parameters of the optimizer's step. Free of torch and of CUDA.
#pragma once

#include <cstdint>

#include "kernels/sampling/params.h"

namespace dmamba::kernels {

/// What is kept beside a parameter.
enum class Mirror : int {
  kNone,
  kBFloat16,    // the parameter, rounded
  kDecayRates,  // -exp(parameter), float32: a scan's A
};

/// One parameter and what belongs to it: contiguous, of one size; float32.
/// Addresses need not be aligned.
struct AdamWTensor {
  float* parameter;
  const float* gradient;
  float* first_moment;
  float* second_moment;
  void* mirror;
  Mirror mirror_kind;
  bool of_set;  // its moments are as old as the steps on its set, not as all steps
  int64_t count;
  float weight_decay;
  float rate;  // of the learning rate; the decay follows it
};

/// A parameter and what is to be kept beside it; contiguous, float32, addresses as above.
struct MirrorTensor {
  const float* parameter;
  void* mirror;
  Mirror kind;  // not kNone
  int64_t count;
  bool whole = false;  // addresses allow four numbers at once: the launch finds out
};

struct AdamWOptions {
  float beta1, beta2, epsilon;
  float gradient_clip;   // largest global norm; 0: off
  int64_t most_skipped;  // steps in a row that are not finite; one more stops the run
};

/// Where the step leaves its traces. Of a step that is skipped neither norm nor loss is added.
struct AdamWTraces {
  float* norm;            // of all gradients, before the clip
  double* norm_sum;       // += norm
  double* loss_sum;       // += loss
  int64_t* step;          // += 1
  int64_t* set_step;      // += 1, or null
  SkippedSteps* skipped;  // counts the step where it is skipped
  int64_t* set_skipped;   // likewise, or null
};

}  // namespace dmamba::kernels
