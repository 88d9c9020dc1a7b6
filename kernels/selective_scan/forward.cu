// Launches the selective scan forward.
#include <algorithm>

#include "kernels/common/launch.cuh"
#include "kernels/selective_scan/forward.cuh"
#include "kernels/selective_scan/launch_common.cuh"

namespace dmamba::kernels {
namespace {

template <class T, class Shape, bool kUsual>
cudaError_t launch_shape(const SelectiveScanForwardParams& p, const ForwardWork& work,
                         cudaStream_t stream) {
  constexpr int kWarps = kForwardWarps<Shape>;
  constexpr int64_t kChannels = kWarps * Shape::kChannels;
  const int64_t blocks = p.batch * ((p.d_inner + kChannels - 1) / kChannels);  // of a chunk
  if (work.n_chunks > 1) {
    cudaError_t error = launch_kernel(selective_scan_forward_kernel<Shape, T, kUsual, true>,
                                      static_cast<unsigned>((work.n_chunks - 1) * blocks),
                                      32 * kWarps, 0, stream, p, work);
    if (error != cudaSuccess) return error;
    error = launch_join_chunks(work.carries, p.initial_state, p, work.n_chunks,
                               /*descending=*/false, stream);
    if (error != cudaSuccess) return error;
  }
  return launch_kernel(selective_scan_forward_kernel<Shape, T, kUsual, false>,
                       static_cast<unsigned>(work.n_chunks * blocks), 32 * kWarps, 0, stream, p,
                       work);
}

template <class T>
cudaError_t launch_storage(const SelectiveScanForwardParams& p, const ForwardWork& work,
                           cudaStream_t stream) {
  if (is_usual(p, work.vectors)) return launch_shape<T, UsualShape, true>(p, work, stream);
  return with_shape(p.d_state, [&](auto shape) {
    return launch_shape<T, decltype(shape), false>(p, work, stream);
  });
}

}  // namespace

size_t selective_scan_forward_workspace(const SelectiveScanParams& p,
                                        const SelectiveScanPlan& plan) {
  const int64_t n_chunks = chunks_of(p, plan);
  return n_chunks > 1 ? 2 * carry_floats(p, n_chunks) * sizeof(float) : 0;
}

cudaError_t launch_selective_scan_forward(const SelectiveScanForwardParams& p,
                                          const SelectiveScanPlan& plan, void* workspace,
                                          cudaStream_t stream) {
  if (!plan_is_valid(plan) || !indices_fit(p) || p.storage == Storage::kFloat64 ||
      (p.checkpoint_every != 0 && p.checkpoint_every != kScanCheckpointEvery)) {
    return cudaErrorInvalidValue;
  }
  if (p.batch == 0 || p.d_inner == 0) return cudaSuccess;
  ForwardWork work{};
  work.chunk_length = static_cast<int>(std::min<int64_t>(plan.chunk_length, INT32_MAX));
  work.n_chunks = static_cast<int>(chunks_of(p, plan));
  if (p.checkpoint_every > 0) {
    work.n_checkpoints = static_cast<int>((p.length - 1) / kScanCheckpointEvery);
  }
  work.vectors = vectors_of(p, {p.u, p.delta, p.z, p.out});
  work.carries.factor = static_cast<float*>(workspace);
  work.carries.state = work.carries.factor + carry_floats(p, work.n_chunks);
  return p.storage == Storage::kBFloat16 ? launch_storage<bfloat16>(p, work, stream)
                                         : launch_storage<float>(p, work, stream);
}

}  // namespace dmamba::kernels
