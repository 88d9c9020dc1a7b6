// What src/ops/cuda and the benchmarks call: the selective scan on a CUDA device.
//
// Storage is float32 or bfloat16, arithmetic fp32. Pointers are device pointers. A call enqueues on
// `stream` and returns: no allocation, no synchronisation, so it can be captured in a CUDA graph.
// The same inputs give the same bits, whatever the stream.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "kernels/selective_scan/params.h"

namespace dmamba::kernels {

/// Tokens between the checkpoints of h that the forward pass leaves for the backward pass, in as
/// many bytes as u and z have (checkpoint.cuh). Measured: docs/kernels.md.
constexpr int64_t kScanCheckpointEvery = 8;

/// Chunks of a plan are multiples of this many tokens.
constexpr int64_t kScanChunkMultiple = 16;

/// Largest d_state of one launch.
constexpr int64_t kScanMaxStates = 128;

/// How a scan is cut: into chunks of `chunk_length` tokens (a multiple of kScanChunkMultiple) that
/// are walked at the same time and joined; chunk_length >= L is one chunk.
struct SelectiveScanPlan {
  int64_t chunk_length;
};

/// The measured rule (docs/kernels.md): from sizes and the number of multiprocessors alone.
SelectiveScanPlan plan_selective_scan(const SelectiveScanParams& p, int multiprocessors);

/// Bytes of scratch (256-byte aligned) that a launch with this plan needs.
size_t selective_scan_forward_workspace(const SelectiveScanParams& p,
                                        const SelectiveScanPlan& plan);
size_t selective_scan_backward_workspace(const SelectiveScanParams& p,
                                         const SelectiveScanPlan& plan);

/// checkpoint_every must be 0 or kScanCheckpointEvery. last_state.data may be null. L d_state and
/// d_inner below 2^30, batch L below 2^32.
cudaError_t launch_selective_scan_forward(const SelectiveScanForwardParams& p,
                                          const SelectiveScanPlan& plan, void* workspace,
                                          cudaStream_t stream);

/// The summed gradients, written whole; null where the input was absent.
struct SelectiveScanGradients {
  float* dA;           // (d_inner, d_state) contiguous
  Sequence dB, dC;     // (batch, L, d_state), storage type
  float* dD;           // (d_inner,)
  float* ddelta_bias;  // (d_inner,)
};

/// The *_partial and group fields of `p` are the CPU's and are not read. checkpoint_every must be
/// kScanCheckpointEvery, checkpoints and, where there is z, out those of the forward launch (any
/// plan).
cudaError_t launch_selective_scan_backward(const SelectiveScanBackwardParams& p,
                                           const SelectiveScanGradients& gradients,
                                           const SelectiveScanPlan& plan, void* workspace,
                                           cudaStream_t stream);

/// The same in two launches, for those who add up the sums over channels themselves: all but the
/// sums; then dA, dD and ddelta_bias, on whichever stream, with the same arguments.
cudaError_t launch_selective_scan_backward_parts(const SelectiveScanBackwardParams& p,
                                                 const SelectiveScanGradients& gradients,
                                                 const SelectiveScanPlan& plan, void* workspace,
                                                 cudaStream_t stream);
cudaError_t launch_selective_scan_backward_sums(const SelectiveScanBackwardParams& p,
                                                const SelectiveScanGradients& gradients,
                                                const SelectiveScanPlan& plan, void* workspace,
                                                cudaStream_t stream);

/// Where the first of them leaves dB and dC: (blocks, batch, L, 2, d_state), to be added in the
/// blocks' order. Null where there is one block: dB and dC are then written.
struct SelectiveScanChannelParts {
  float* data;
  int64_t blocks;
};
SelectiveScanChannelParts selective_scan_channel_parts(const SelectiveScanBackwardParams& p,
                                                       const SelectiveScanPlan& plan,
                                                       void* workspace);

}  // namespace dmamba::kernels
