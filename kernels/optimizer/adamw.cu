// AdamW over all parameters of a model, with the clip by the global norm, in two launches for
// every 96 tensors.
//
//   norm    a block sums the squares of its stretch of a gradient          reads   4 bytes a number
//   update  every block adds the blocks' sums, then moves its stretch      moves  28 to 34
//
// Nothing is read back and nothing depends on the host: the factor of the clip is worked out by
// every block anew, in the same order, from sums that lie in the L2 cache. The sums have one order
// on any device. The update writes a parameter's mirror on the way, which saves the next forward
// pass a launch for each weight.
//
//   g = clip g;  p -= lr decay p;  m += (1 - b1) (g - m);  v = b2 v + (1 - b2) g^2
//   p -= step_size m / (sqrt(v) / second_correction + epsilon)
//
// lr and step_size are the step's times the tensor's own rate; a rate of 1 changes no bit. A step
// whose loss or norm is not finite moves nothing: every block finds that out for itself, too.
#include <algorithm>

#include "kernels/common/alignment.h"
#include "kernels/common/launch.cuh"
#include "kernels/common/storage.cuh"
#include "kernels/common/stretches.cuh"
#include "kernels/common/warp.cuh"
#include "kernels/optimizer/launch.h"
#include "kernels/optimizer/mirror.cuh"

namespace dmamba::kernels {
namespace {

constexpr int kThreads = 256, kWarp = 32;
constexpr int kVectors = 2;                        // of four numbers, a thread
constexpr int kStretch = kThreads * kVectors * 4;  // numbers of a block
constexpr int kTensorsPerLaunch = 96;

/// The tensors of one launch, and which of its blocks belong to which.
struct Batch {
  AdamWTensor tensors[kTensorsPerLaunch];
  bool wide[kTensorsPerLaunch];  // addresses allow four numbers at once
  int first_block[kTensorsPerLaunch + 1];
  int count;
};

struct Place {
  int tensor;
  int64_t offset;  // of the block's stretch
};

__device__ Place place_of(const Batch& batch, int block) {
  const int tensor = stretch_of(batch.first_block, batch.count, block);
  return {tensor, int64_t{block - batch.first_block[tensor]} * kStretch};
}

/// The sum over the block, in every thread; one order.
__device__ float sum_block(float value) {
  __shared__ float warps[kThreads / kWarp];
  value = sum_warp(value);
  if (threadIdx.x % kWarp == 0) warps[threadIdx.x / kWarp] = value;
  __syncthreads();
  float sum = warps[0];
#pragma unroll
  for (int w = 1; w < kThreads / kWarp; ++w) sum += warps[w];
  return sum;
}

/// The thread's i-th vector of the stretch at `offset`; `count` of its numbers exist.
__device__ int64_t vector_at(int64_t offset, int i, int64_t size, int& count) {
  const int64_t at = offset + (int64_t{i} * kThreads + threadIdx.x) * 4;
  const int64_t left = size - at;
  count = static_cast<int>(left < 0 ? 0 : left < 4 ? left : 4);
  return at;
}

__global__ void __launch_bounds__(kThreads)
    norm_kernel(const __grid_constant__ Batch batch, float* __restrict__ sums) {
  let_next_come();
  const Place place = place_of(batch, static_cast<int>(blockIdx.x));
  const AdamWTensor& t = batch.tensors[place.tensor];
  float sum = 0.0F;
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    int count;
    const int64_t at = vector_at(place.offset, i, t.count, count);
    float g[4];
    fetch<4, false>(t.gradient + at, count, count == 4 && batch.wide[place.tensor]).get(g);
#pragma unroll
    for (int e = 0; e < 4; ++e) sum = fmaf(g[e], g[e], sum);
  }
  sum = sum_block(sum);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

/// The norm, in every thread.
__device__ float global_norm(const float* __restrict__ sums, int count) {
  float sum = 0.0F;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kThreads) sum += sums[i];
  return sqrtf(sum_block(sum));
}

/// Counts a step that moves nothing.
__device__ void count_skipped(const AdamWTraces& traces, int64_t most) {
  SkippedSteps& skipped = *traces.skipped;
  if (skipped.stopped_at != 0) return;
  if (skipped.in_a_row >= most) {
    skipped.stopped_at = *traces.step + 1;
    return;
  }
  skipped.in_a_row += 1;
  skipped.total += 1;
  if (traces.set_skipped != nullptr) *traces.set_skipped += 1;
}

__device__ void leave_traces(const AdamWTraces& traces, float norm, float loss, bool moves,
                             int64_t most_skipped) {
  *traces.norm = norm;
  if (moves) {
    *traces.norm_sum += static_cast<double>(norm);
    *traces.loss_sum += static_cast<double>(loss);
    traces.skipped->in_a_row = 0;
  } else {
    count_skipped(traces, most_skipped);
  }
  *traces.step += 1;
  if (traces.set_step != nullptr) *traces.set_step += 1;
}

/// `traces.norm` is null in all launches but the last.
__global__ void __launch_bounds__(kThreads)
    update_kernel(const __grid_constant__ Batch batch, const __grid_constant__ AdamWOptions options,
                  const StepScalars* __restrict__ scalars, const float* __restrict__ loss,
                  const __grid_constant__ AdamWTraces traces, const float* __restrict__ sums,
                  int n_sums) {
  const Place place = place_of(batch, static_cast<int>(blockIdx.x));
  const AdamWTensor& t = batch.tensors[place.tensor];
  const bool wide = batch.wide[place.tensor];
  // These come while the norm is computed, whose kernel only reads them: what was before it has
  // ended.
  float p[kVectors][4], g[kVectors][4], m[kVectors][4], v[kVectors][4];
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    int count;
    const int64_t at = vector_at(place.offset, i, t.count, count);
    const bool whole = wide && count == 4;
    fetch<4, false>(t.parameter + at, count, whole).get(p[i]);
    fetch<4, false>(t.gradient + at, count, whole).get(g[i]);
    fetch<4, false>(t.first_moment + at, count, whole).get(m[i]);
    fetch<4, false>(t.second_moment + at, count, whole).get(v[i]);
  }
  wait_for_stream();
  const StepScalars s = scalars[t.of_set ? 1 : 0];
  const float norm = global_norm(sums, n_sums);
  const bool moves = isfinite(norm) && isfinite(*loss) && s.stopped == 0.0F;
  if (blockIdx.x == 0 && threadIdx.x == 0 && traces.norm != nullptr) {
    leave_traces(traces, norm, *loss, moves, options.most_skipped);
  }
  if (!moves) return;
  float clip = 1.0F;  // 1e-6 as in torch's clip_grad_norm_
  if (options.gradient_clip > 0.0F) clip = fminf(options.gradient_clip / (norm + 1e-6F), 1.0F);
  const float kept = 1.0F - s.learning_rate * t.rate * t.weight_decay;
  const float step_size = s.step_size * t.rate;
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    int count;
    const int64_t at = vector_at(place.offset, i, t.count, count);
    const bool whole = wide && count == 4;
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float gradient = g[i][e] * clip;
      m[i][e] = fmaf(1.0F - options.beta1, gradient - m[i][e], m[i][e]);
      v[i][e] = fmaf(options.beta2, v[i][e], (1.0F - options.beta2) * gradient * gradient);
      const float denominator = sqrtf(v[i][e]) / s.second_correction + options.epsilon;
      p[i][e] = fmaf(-step_size, m[i][e] / denominator, p[i][e] * kept);
    }
    store_some<float, 4>(t.parameter + at, p[i], count, whole);
    store_some<float, 4>(t.first_moment + at, m[i], count, whole);
    store_some<float, 4>(t.second_moment + at, v[i], count, whole);
    store_mirror(t.mirror, t.mirror_kind, at, p[i], count, whole);
  }
}

/// At least one, so that a launch of empty tensors alone has blocks, too.
int blocks_of(const AdamWTensor& t) {
  return static_cast<int>(std::max<int64_t>(1, (t.count + kStretch - 1) / kStretch));
}

Batch make_batch(const AdamWTensor* tensors, int count) {
  Batch batch;
  batch.count = count;
  int block = 0;
  for (int i = 0; i < count; ++i) {
    const AdamWTensor& t = batch.tensors[i] = tensors[i];
    batch.wide[i] = aligned(t.parameter, 16) && aligned(t.gradient, 16) &&
                    aligned(t.first_moment, 16) && aligned(t.second_moment, 16) &&
                    aligned(t.mirror, 16);
    batch.first_block[i] = block;
    block += blocks_of(tensors[i]);
  }
  batch.first_block[count] = block;
  return batch;
}

int total_blocks(const AdamWTensor* tensors, int count) {
  int blocks = 0;
  for (int i = 0; i < count; ++i) blocks += blocks_of(tensors[i]);
  return blocks;
}

/// Calls f(batch, its first block among all) for each launch.
template <class F>
void for_each_batch(const AdamWTensor* tensors, int count, F&& f) {
  int first_block = 0;
  for (int first = 0; first < count; first += kTensorsPerLaunch) {
    const Batch batch = make_batch(tensors + first, std::min(kTensorsPerLaunch, count - first));
    f(batch, first_block, first + kTensorsPerLaunch >= count);
    first_block += batch.first_block[batch.count];
  }
}

}  // namespace

size_t adamw_workspace(const AdamWTensor* tensors, int count) {
  return static_cast<size_t>(total_blocks(tensors, count)) * sizeof(float);
}

cudaError_t launch_adamw(const AdamWTensor* tensors, int count, const AdamWOptions& options,
                         const StepScalars* scalars, const float* loss, const AdamWTraces& traces,
                         void* workspace, cudaStream_t stream) {
  auto* sums = static_cast<float*>(workspace);
  const int n_sums = total_blocks(tensors, count);
  cudaError_t error = cudaSuccess;
  for_each_batch(tensors, count, [&](const Batch& batch, int first_block, bool) {
    if (error == cudaSuccess) {
      error = launch_kernel(norm_kernel, batch.first_block[batch.count], kThreads, 0, stream, batch,
                            sums + first_block);
    }
  });
  for_each_batch(tensors, count, [&](const Batch& batch, int, bool last) {
    if (error == cudaSuccess) {
      error =
          launch_early(update_kernel, batch.first_block[batch.count], kThreads, 0, stream, batch,
                       options, scalars, loss, last ? traces : AdamWTraces{}, sums, n_sums);
    }
  });
  return error;
}

}  // namespace dmamba::kernels
