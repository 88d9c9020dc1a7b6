// A batch of recorded games on the device: several blocks a segment, each with some of its frames.
//
// A segment is drawn as data::FrameSampler draws it: by (seed, step, sample) through Philox, in
// integers, so the same segment comes out; every block of a segment draws it anew. Bound by memory:
// a strip's frames are read and written once, 16 bytes at a time.
#include "include/dmamba/common/philox.h"
#include "kernels/common/launch.cuh"
#include "kernels/sampling/episodes.cuh"
#include "kernels/sampling/launch.h"

namespace dmamba::kernels {
namespace {

constexpr int kThreads = 128;
constexpr int kFrameBytes = 84 * 84, kPacks = kFrameBytes / 16;  // of 16 bytes
constexpr int kBefore = 3;  // frames in front of a segment's first
constexpr int kFramesABlock = 4;

struct Segment {
  int64_t first;   // transition in the recording
  int64_t start;   // step within the episode
  int64_t length;  // up to K
};

__device__ Segment draw(const DrawStripsParams& p, uint64_t step, uint32_t sample) {
  const common::PhiloxBlock bits =
      common::Philox{p.seed}(step, sample, common::PhiloxPurpose::kSegment);
  const Games& data = p.data;
  const auto total = static_cast<uint64_t>(data.starts[data.episodes]);
  const auto transition = static_cast<int64_t>(common::bounded(bits.bits64(0), total));
  const int64_t episode = find_episode<kThreads>(data.starts, data.episodes, transition);
  const int64_t first = data.starts[episode], whole = data.starts[episode + 1] - first;
  const int64_t length = min(p.batch.context_length, whole);
  const int64_t start = min(transition - first, whole - length);
  return {first + start, start, length};
}

__device__ void write_columns(const DrawStripsParams& p, int64_t sample, const Segment& s) {
  const StripBatch& out = p.batch;
  const int64_t K = out.context_length, padding = K - s.length;
  for (int64_t t = threadIdx.x; t < K; t += kThreads) {
    const bool real = t >= padding;
    const int64_t from = s.first + t - padding, to = sample * K + t;
    out.actions[to] = real ? p.data.actions[from] : 0;
    out.returns_to_go[to] = real ? p.data.returns_to_go[from] : 0.0F;
    out.mask[to] = real;
  }
  if (threadIdx.x == 0) out.timesteps[sample] = min(s.start, out.max_timestep - 1);
}

/// Frames begin to end of the strip; zero where no step of the episode stands.
__device__ void write_frames(const DrawStripsParams& p, int64_t sample, const Segment& s,
                             int64_t begin, int64_t end) {
  const int64_t K = p.batch.context_length, padding = K - s.length;
  const uint4* frames = reinterpret_cast<const uint4*>(p.data.frames);
  uint4* out = reinterpret_cast<uint4*>(p.batch.strips) + sample * (kBefore + K) * kPacks;
  for (int64_t i = begin * kPacks + threadIdx.x; i < end * kPacks; i += kThreads) {
    const int64_t step = i / kPacks - kBefore - padding;  // of the segment
    const bool real = step >= -s.start && step < s.length && step >= -kBefore;
    out[i] = real ? __ldcs(frames + (s.first + step) * kPacks + i % kPacks) : uint4{};
  }
}

__global__ void __launch_bounds__(kThreads)
    draw_strips_kernel(const __grid_constant__ DrawStripsParams p) {
  const int64_t sample = blockIdx.x, begin = int64_t{blockIdx.y} * kFramesABlock;
  const Segment s =
      draw(p, static_cast<uint64_t>(*p.step), static_cast<uint32_t>(p.first_sample + sample));
  if (blockIdx.y == 0) write_columns(p, sample, s);
  write_frames(p, sample, s, begin, min(begin + kFramesABlock, kBefore + p.batch.context_length));
}

}  // namespace

cudaError_t launch_draw_strips(const DrawStripsParams& p, cudaStream_t stream) {
  const int64_t frames = kBefore + p.batch.context_length;
  const dim3 grid(static_cast<unsigned>(p.batch.batch_size),
                  static_cast<unsigned>((frames + kFramesABlock - 1) / kFramesABlock));
  return launch_kernel(draw_strips_kernel, grid, kThreads, 0, stream, p);
}

}  // namespace dmamba::kernels
