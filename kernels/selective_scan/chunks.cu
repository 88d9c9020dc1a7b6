// The join of the chunks, and the rule that cuts a scan.
#include <algorithm>

#include "kernels/common/launch.cuh"
#include "kernels/selective_scan/chunks.cuh"
#include "kernels/selective_scan/launch_common.cuh"

namespace dmamba::kernels {
namespace {

/// A thread walks over the chunks of one (sequence, channel, state).
__global__ void __launch_bounds__(256)
    join_chunks_kernel(ChunkCarries carries, StateView first, int64_t batch, int64_t n_chunks,
                       int64_t d_inner, int64_t d_state, bool descending) {
  const int64_t width = d_inner * d_state;
  const int64_t index = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (index >= batch * width) return;
  const int64_t b = index / width, channel = index % width / d_state, n = index % d_state;
  float h = first.data == nullptr
                ? 0.0F
                : static_cast<const float*>(
                      first.data)[b * first.batch_stride + channel * first.channel_stride +
                                  n * first.width_stride];
  for (int64_t i = 0; i < n_chunks; ++i) {
    const int64_t chunk = descending ? n_chunks - 1 - i : i;
    const int64_t at = (b * n_chunks + chunk) * width + index % width;
    if (i + 1 == n_chunks) {  // hands on to none, and has left nothing
      carries.state[at] = h;
      break;
    }
    const float factor = carries.factor[at], state = carries.state[at];
    carries.state[at] = h;
    h = signbit(factor) ? state : fmaf(factor, h, state);
  }
}

/// One chunk where the warps feed the schedulers, four a multiprocessor, as it is; else as many
/// chunks as give each multiprocessor 32 warps, two full rounds of the forward pass, and not more:
/// a third round would be nearly empty. The first pass costs two thirds of the second, so that
/// splitting sooner loses (docs/kernels.md has the measurements).
int64_t chunk_length_for(const SelectiveScanParams& p, int64_t warps, int64_t multiprocessors) {
  constexpr int64_t kShortest = 128;  // below that the join costs more than it brings
  const auto rounded = [](int64_t length) {
    return (length + kScanChunkMultiple - 1) / kScanChunkMultiple * kScanChunkMultiple;
  };
  if (warps > 4 * multiprocessors || warps == 0) return rounded(p.length);
  const int64_t chunks = 32 * multiprocessors / warps;
  return std::max(kShortest, rounded((p.length + chunks - 1) / chunks));
}

/// Warps of one walk with two channels a lane.
int64_t warps_of(const SelectiveScanParams& p) {
  int64_t lanes = 2;
  while (lanes < 32 && lanes * kStatesPerLane < p.d_state) lanes *= 2;
  const int64_t channels = 2 * 32 / lanes;
  return p.batch * ((p.d_inner + channels - 1) / channels);
}

}  // namespace

cudaError_t launch_join_chunks(const ChunkCarries& carries, const StateView& first,
                               const SelectiveScanParams& p, int64_t n_chunks, bool descending,
                               cudaStream_t stream) {
  const int64_t threads = p.batch * p.d_inner * p.d_state;
  return launch_kernel(join_chunks_kernel, static_cast<unsigned>((threads + 255) / 256), 256, 0,
                       stream, carries, first, p.batch, n_chunks, p.d_inner, p.d_state, descending);
}

SelectiveScanPlan plan_selective_scan(const SelectiveScanParams& p, int multiprocessors) {
  return {chunk_length_for(p, warps_of(p), multiprocessors)};
}

}  // namespace dmamba::kernels
