// What src/ops/cuda calls to open a training step. The rules of kernels/selective_scan/launch.h
// hold here too.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/sampling/params.h"

namespace dmamba::kernels {

/// Writes the scalars, the dropout keys and the batch of step *p.step: the segments that
/// data::SegmentSampler draws, bit for bit.
cudaError_t launch_begin_step(const BeginStepParams& p, cudaStream_t stream);

/// Writes the batch of step *p.step: the segments that data::FrameSampler draws, bit for bit.
cudaError_t launch_draw_strips(const DrawStripsParams& p, cudaStream_t stream);

}  // namespace dmamba::kernels
