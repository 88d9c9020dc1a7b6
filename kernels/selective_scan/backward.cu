// Launches the selective scan backward.
#include <algorithm>

#include "kernels/common/launch.cuh"
#include "kernels/selective_scan/backward.cuh"
#include "kernels/selective_scan/backward_carry.cuh"
#include "kernels/selective_scan/gradients.cuh"
#include "kernels/selective_scan/launch_common.cuh"

namespace dmamba::kernels {
namespace {

int64_t channel_blocks_of(const SelectiveScanParams& p) {
  int64_t blocks = 1;
  with_shape(p.d_state, [&](auto shape) {
    constexpr int64_t kChannels =
        BackwardShape<decltype(shape)>::kWarps * decltype(shape)::kChannels;
    blocks = (p.d_inner + kChannels - 1) / kChannels;
    return cudaSuccess;
  });
  return blocks;
}

/// Lays the scratch out; returns its floats. Every array begins at a multiple of 256 bytes.
int64_t lay_out(const SelectiveScanParams& p, int64_t n_chunks, int64_t channel_blocks,
                float* memory, BackwardWork* work) {
  int64_t used = 0;
  const auto take = [&](int64_t floats) {
    float* at = memory + used;
    used += (floats + 63) / 64 * 64;
    return at;
  };
  const int64_t parts = p.batch * n_chunks;
  work->parts.dA = take(parts * p.d_inner * p.d_state);
  work->parts.dD = take(parts * p.d_inner);
  work->parts.ddelta_bias = take(parts * p.d_inner);
  work->parts.dBdC =
      take(channel_blocks > 1 ? channel_blocks * p.batch * p.length * 2 * p.d_state : 0);
  work->carries.factor = take(n_chunks > 1 ? carry_floats(p, n_chunks) : 0);
  work->carries.state = take(n_chunks > 1 ? carry_floats(p, n_chunks) : 0);
  return used;
}

template <class T, class Shape, bool kUsual>
cudaError_t launch_shape(const SelectiveScanBackwardParams& p, const BackwardWork& work,
                         cudaStream_t stream) {
  const int64_t blocks = p.batch * work.n_chunks * work.channel_blocks;
  return launch_kernel(selective_scan_backward_kernel<Shape, T, kUsual>,
                       static_cast<unsigned>(blocks), BackwardShape<Shape>::kThreads,
                       sizeof(BackwardShared<Shape, T>), stream, p, work);
}

/// The gradients that enter the chunks.
template <class T>
cudaError_t launch_carries(const SelectiveScanBackwardParams& p, const BackwardWork& work,
                           cudaStream_t stream) {
  const CarryWork carry{work.chunk_length, work.n_chunks, work.vectors, work.carries};
  const cudaError_t error = with_shape(p.d_state, [&](auto shape) {
    constexpr int64_t kChannels = kCarryWarps * decltype(shape)::kChannels;
    const int64_t blocks =
        p.batch * (work.n_chunks - 1) * ((p.d_inner + kChannels - 1) / kChannels);
    return launch_kernel(selective_scan_carry_kernel<decltype(shape), T>,
                         static_cast<unsigned>(blocks), 32 * kCarryWarps, 0, stream, p, carry);
  });
  if (error != cudaSuccess) return error;
  return launch_join_chunks(work.carries, p.dlast_state, p, work.n_chunks, /*descending=*/true,
                            stream);
}

template <class T>
cudaError_t launch_storage(const SelectiveScanBackwardParams& p, const BackwardWork& work,
                           cudaStream_t stream) {
  if (is_usual(p, work.vectors) && work.channel_blocks > 1) {
    return launch_shape<T, UsualShape, true>(p, work, stream);
  }
  return with_shape(p.d_state, [&](auto shape) {
    return launch_shape<T, decltype(shape), false>(p, work, stream);
  });
}

bool can_run(const SelectiveScanBackwardParams& p, const SelectiveScanPlan& plan) {
  return plan_is_valid(plan) && indices_fit(p) && p.storage != Storage::kFloat64 &&
         p.d_state <= kScanMaxStates && p.checkpoint_every == kScanCheckpointEvery &&
         (p.z.data == nullptr || p.out.data != nullptr || p.length == 0);
}

BackwardWork work_of(const SelectiveScanBackwardParams& p, const SelectiveScanGradients& gradients,
                     const SelectiveScanPlan& plan, void* workspace) {
  BackwardWork work{};
  work.chunk_length = static_cast<int>(std::min<int64_t>(plan.chunk_length, INT32_MAX));
  work.n_chunks = static_cast<int>(chunks_of(p, plan));
  work.channel_blocks = static_cast<int>(channel_blocks_of(p));
  work.vectors = vectors_of(p, {p.u, p.delta, p.z, p.dout, p.out, p.du, p.ddelta, p.dz});
  work.dB = gradients.dB;
  work.dC = gradients.dC;
  lay_out(p, work.n_chunks, work.channel_blocks, static_cast<float*>(workspace), &work);
  return work;
}

}  // namespace

size_t selective_scan_backward_workspace(const SelectiveScanParams& p,
                                         const SelectiveScanPlan& plan) {
  BackwardWork work{};
  return lay_out(p, chunks_of(p, plan), channel_blocks_of(p), nullptr, &work) * sizeof(float);
}

SelectiveScanChannelParts selective_scan_channel_parts(const SelectiveScanBackwardParams& p,
                                                       const SelectiveScanPlan& plan,
                                                       void* workspace) {
  const BackwardWork work = work_of(p, {}, plan, workspace);
  return {work.channel_blocks > 1 ? work.parts.dBdC : nullptr, work.channel_blocks};
}

cudaError_t launch_selective_scan_backward_parts(const SelectiveScanBackwardParams& p,
                                                 const SelectiveScanGradients& gradients,
                                                 const SelectiveScanPlan& plan, void* workspace,
                                                 cudaStream_t stream) {
  if (!can_run(p, plan)) return cudaErrorInvalidValue;
  if (p.batch == 0 || p.d_inner == 0) return cudaSuccess;
  const BackwardWork work = work_of(p, gradients, plan, workspace);
  const bool bf16 = p.storage == Storage::kBFloat16;
  if (work.n_chunks > 1) {
    const cudaError_t error =
        bf16 ? launch_carries<bfloat16>(p, work, stream) : launch_carries<float>(p, work, stream);
    if (error != cudaSuccess) return error;
  }
  return bf16 ? launch_storage<bfloat16>(p, work, stream) : launch_storage<float>(p, work, stream);
}

cudaError_t launch_selective_scan_backward_sums(const SelectiveScanBackwardParams& p,
                                                const SelectiveScanGradients& gradients,
                                                const SelectiveScanPlan& plan, void* workspace,
                                                cudaStream_t stream) {
  if (!can_run(p, plan)) return cudaErrorInvalidValue;
  return launch_sum_gradients(p, work_of(p, gradients, plan, workspace), gradients,
                              /*channel_blocks=*/false, stream);
}

cudaError_t launch_selective_scan_backward(const SelectiveScanBackwardParams& p,
                                           const SelectiveScanGradients& gradients,
                                           const SelectiveScanPlan& plan, void* workspace,
                                           cudaStream_t stream) {
  const cudaError_t error =
      launch_selective_scan_backward_parts(p, gradients, plan, workspace, stream);
  if (error != cudaSuccess) return error;
  return launch_sum_gradients(p, work_of(p, gradients, plan, workspace), gradients,
                              /*channel_blocks=*/true, stream);
}

}  // namespace dmamba::kernels
