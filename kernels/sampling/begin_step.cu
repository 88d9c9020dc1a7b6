// The opening of a training step on the device: a block a segment, and one more for the scalars.
//
// A segment is drawn as data::SegmentSampler draws it: by (seed, step, sample) through Philox, in
// integers, so the same segment comes out. Its transitions lie side by side in the recording and in
// the batch: three plain copies. Bound by latency: one draw, a search over the episodes by all
// threads at once (two rounds up to 16,384 of them), one round of loads.
#include "include/dmamba/common/philox.h"
#include "kernels/common/launch.cuh"
#include "kernels/sampling/episodes.cuh"
#include "kernels/sampling/launch.h"

namespace dmamba::kernels {
namespace {

constexpr int kThreads = 128;

struct Segment {
  int64_t first;   // transition in the recording
  int64_t start;   // step within the episode
  int64_t length;  // up to K
};

__device__ Segment draw(const BeginStepParams& p, uint64_t step, uint32_t sample) {
  const Trajectories& data = p.data;
  const common::PhiloxBlock bits =
      common::Philox{p.seed}(step, sample, common::PhiloxPurpose::kSegment);
  const auto total = static_cast<uint64_t>(data.starts[data.episodes]);
  const auto transition = static_cast<int64_t>(common::bounded(bits.bits64(0), total));
  const int64_t episode = find_episode<kThreads>(data.starts, data.episodes, transition);
  const int64_t first = data.starts[episode], length = data.starts[episode + 1] - first;
  const auto start =
      static_cast<int64_t>(common::bounded(bits.bits64(1), static_cast<uint64_t>(length)));
  const int64_t rest = length - start, most = p.batch.context_length;
  return {first + start, start, rest < most ? rest : most};
}

/// Rows of `width` floats behind `padding` rows that `pad(column)` fills.
template <class Padding>
__device__ void copy_rows(const float* from, float* to, int64_t padding, int64_t rows,
                          int64_t width, Padding&& pad) {
  const int64_t skipped = padding * width, count = (padding + rows) * width;
  for (int64_t i = threadIdx.x; i < count; i += kThreads) {
    to[i] = i < skipped ? pad(i % width) : from[i - skipped];
  }
}

__device__ void write_segment(const BeginStepParams& p, int64_t sample, const Segment& s) {
  const Trajectories& data = p.data;
  const SegmentBatch& out = p.batch;
  const int64_t K = out.context_length, padding = K - s.length;
  copy_rows(data.states + s.first * data.state_dim, out.states + sample * K * data.state_dim,
            padding, s.length, data.state_dim,
            [&](int64_t column) { return data.padding_state[column]; });
  copy_rows(data.actions + s.first * data.act_dim, out.actions + sample * K * data.act_dim, padding,
            s.length, data.act_dim, [&](int64_t) { return data.padding_action; });
  copy_rows(data.returns_to_go + s.first, out.returns_to_go + sample * K, padding, s.length, 1,
            [](int64_t) { return 0.0F; });
  for (int64_t t = threadIdx.x; t < K; t += kThreads) {
    const int64_t step = s.start + t - padding, last = out.max_timestep - 1;
    out.timesteps[sample * K + t] = t < padding ? 0 : step < last ? step : last;
    out.mask[sample * K + t] = t >= padding;
  }
}

/// Of the step's rate, for moments that are `count` updates old after it.
__device__ void write_scalars(const BeginStepParams& p, int64_t step, double count,
                              StepScalars* scalars) {
  __shared__ double rate, correction;  // in warps of their own: each takes a microsecond
  if (threadIdx.x == 0) rate = p.learning_rate.at(step);
  if (threadIdx.x == 32) correction = 1.0 - pow(p.beta1, count);
  if (threadIdx.x == 64) {
    scalars->second_correction = static_cast<float>(sqrt(1.0 - pow(p.beta2, count)));
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    scalars->learning_rate = static_cast<float>(rate);
    scalars->step_size = static_cast<float>(rate / correction);
    scalars->stopped = p.skipped->stopped_at == 0 ? 0.0F : 1.0F;
  }
}

__device__ void begin(const BeginStepParams& p, int64_t step) {
  write_scalars(p, step, static_cast<double>(step + 1 - p.skipped->total), p.scalars);
  if (p.set_step != nullptr) {
    __syncthreads();
    write_scalars(p, step, static_cast<double>(*p.set_step + 1 - *p.set_skipped), p.scalars + 1);
  }
  for (int64_t i = threadIdx.x; i < p.n_keys; i += kThreads) {
    p.dropout_keys[i] = static_cast<int64_t>(
        common::dropout_key(p.seed, static_cast<uint64_t>(step), static_cast<uint32_t>(i)));
  }
}

__global__ void __launch_bounds__(kThreads)
    begin_step_kernel(const __grid_constant__ BeginStepParams p) {
  const int64_t step = *p.step, sample = blockIdx.x;
  if (sample == p.batch.batch_size) return begin(p, step);
  write_segment(
      p, sample,
      draw(p, static_cast<uint64_t>(step), static_cast<uint32_t>(p.first_sample + sample)));
}

}  // namespace

cudaError_t launch_begin_step(const BeginStepParams& p, cudaStream_t stream) {
  return launch_kernel(begin_step_kernel, static_cast<unsigned>(p.batch.batch_size + 1), kThreads,
                       0, stream, p);
}

}  // namespace dmamba::kernels
