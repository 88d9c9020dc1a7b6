// The action head and its loss on a CUDA device: one launch each way, where single ops take 20.
//
// Forward, a warp has a step's token in registers and multiplies it with one row of the weight
// after the other; the slope of the loss is left for the backward pass, which is then linear.
// Backward, a block has eight steps and a thread a column: it writes the token's gradient and adds
// up the weight's on the way. Every block counts the real steps itself: a byte a step, which the
// cache holds. Sums have one order on any device.
#include <type_traits>

#include "kernels/action_head/launch.h"
#include "kernels/common/launch.cuh"
#include "kernels/normalization/row.cuh"

namespace dmamba::kernels {
namespace {

constexpr int kThreads = static_cast<int>(kHeadSteps) * 32;
constexpr int kToken = 1, kTokens = 3;  // the state's among a step's

__device__ int count_real(const bool* mask, int64_t steps) {
  __shared__ int warps[kHeadSteps];
  int count = 0;
  for (int64_t i = threadIdx.x; i < steps; i += kThreads) count += mask[i] ? 1 : 0;
  count = static_cast<int>(__reduce_add_sync(~0U, static_cast<unsigned>(count)));
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = count;
  __syncthreads();
  int total = 0;
#pragma unroll
  for (int w = 0; w < kHeadSteps; ++w) total += warps[w];
  return total;
}

template <int kTurns, class T>
__global__ void __launch_bounds__(kThreads)
    action_head_kernel(const __grid_constant__ ActionHeadParams p) {
  wait_for_stream();
  __shared__ float losses[kHeadSteps];
  const Lane lane{static_cast<int>(threadIdx.x) % 32, static_cast<int>(p.width)};
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t step = int64_t{blockIdx.x} * kHeadSteps + warp;
  const float share =
      1.0F / (static_cast<float>(count_real(p.mask, p.steps)) * static_cast<float>(p.act_dim));
  float loss = 0.0F;
  if (step < p.steps) {
    const Row<kTurns> y =
        load_row<kTurns>(static_cast<const T*>(p.y) + (step * kTokens + kToken) * p.width, lane);
    const float real = p.mask[step] ? share : 0.0F;
    for (int64_t a = 0; a < p.act_dim; ++a) {
      const Row<kTurns> weight = load_row<kTurns>(p.weight + a * p.width, lane);
      float dot = 0.0F;
#pragma unroll
      for (int i = 0; i < kTurns; ++i) {
#pragma unroll
        for (int e = 0; e < kRowVector; ++e) dot = fmaf(y.v[i][e], weight.v[i][e], dot);
      }
      const float action = tanhf(sum_warp(dot) + p.bias[a]);
      const float error = action - p.targets[step * p.act_dim + a];
      loss = fmaf(real * error, error, loss);
      if (lane.lane == 0) {
        p.slopes[step * p.act_dim + a] = 2.0F * real * error * (1.0F - action * action);
      }
    }
  }
  if (lane.lane == 0) losses[warp] = loss;
  __syncthreads();
  if (threadIdx.x != 0) return;
  float sum = losses[0];
#pragma unroll
  for (int w = 1; w < kHeadSteps; ++w) sum += losses[w];
  p.losses[blockIdx.x] = sum;
}

constexpr int kActions = 8;  // of a round

template <class T>
__global__ void __launch_bounds__(kThreads)
    action_head_backward_kernel(const __grid_constant__ ActionHeadBackwardParams p) {
  wait_for_stream();
  float* slopes = dynamic_shared<float>();  // (kHeadSteps, act_dim)
  const int64_t first = int64_t{blockIdx.x} * kHeadSteps;
  const auto steps = static_cast<int>(min(kHeadSteps, p.steps - first));
  const auto act_dim = static_cast<int>(p.act_dim);
  const float dloss = *p.dloss;
  for (int i = static_cast<int>(threadIdx.x); i < kHeadSteps * act_dim; i += kThreads) {
    slopes[i] = i < steps * act_dim ? dloss * p.slopes[first * act_dim + i] : 0.0F;
  }
  __syncthreads();
  const T* y = static_cast<const T*>(p.y) + (first * kTokens + kToken) * p.width;
  T* dy = static_cast<T*>(p.dy) + first * kTokens * p.width;
  float* parts = p.parts + int64_t{blockIdx.x} * act_dim * (p.width + 1);
  for (int64_t c = threadIdx.x; c < p.width; c += kThreads) {
    float gradient[kHeadSteps] = {};
    for (int a = 0; a < act_dim; a += kActions) {
      float weight[kActions], sums[kActions] = {};
#pragma unroll
      for (int k = 0; k < kActions; ++k) {
        weight[k] = a + k < act_dim ? p.weight[(a + k) * p.width + c] : 0.0F;
      }
#pragma unroll
      for (int s = 0; s < kHeadSteps; ++s) {
        const float value = s < steps ? to_float(y[s * kTokens * p.width + c]) : 0.0F;
#pragma unroll
        for (int k = 0; k < kActions; ++k) {
          const float slope = a + k < act_dim ? slopes[s * act_dim + a + k] : 0.0F;
          gradient[s] = fmaf(slope, weight[k], gradient[s]);
          sums[k] = fmaf(slope, value, sums[k]);
        }
      }
#pragma unroll
      for (int k = 0; k < kActions; ++k) {
        if (a + k < act_dim) parts[(a + k) * p.width + c] = sums[k];
      }
    }
#pragma unroll
    for (int s = 0; s < kHeadSteps; ++s) {
      if (s >= steps) break;
#pragma unroll
      for (int token = 0; token < kTokens; ++token) {
        dy[(s * kTokens + token) * p.width + c] =
            from_float<T>(token == kToken ? gradient[s] : 0.0F);
      }
    }
  }
  for (int a = static_cast<int>(threadIdx.x); a < act_dim; a += kThreads) {
    float sum = 0.0F;
    for (int s = 0; s < steps; ++s) sum += slopes[s * act_dim + a];
    parts[act_dim * p.width + a] = sum;
  }
}

template <class T>
cudaError_t launch_stored(const ActionHeadParams& p, cudaStream_t stream) {
  return with_row_turns(p.width, [&](auto turns) {
    const auto blocks = static_cast<unsigned>(action_head_blocks(p.steps));
    return launch_early(action_head_kernel<turns(), T>, blocks, kThreads, 0, stream, p);
  });
}

template <class T>
cudaError_t launch_stored(const ActionHeadBackwardParams& p, cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>(action_head_blocks(p.steps));
  const size_t bytes = static_cast<size_t>(kHeadSteps * p.act_dim) * sizeof(float);
  return launch_early(action_head_backward_kernel<T>, blocks, kThreads, bytes, stream, p);
}

template <class Params>
cudaError_t launch_any(const Params& p, cudaStream_t stream) {
  if (!norm_width_fits(p.width) || p.storage == Storage::kFloat64) return cudaErrorInvalidValue;
  if (p.steps == 0) return cudaSuccess;
  return p.storage == Storage::kBFloat16 ? launch_stored<bfloat16>(p, stream)
                                         : launch_stored<float>(p, stream);
}

}  // namespace

cudaError_t launch_action_head(const ActionHeadParams& p, cudaStream_t stream) {
  return launch_any(p, stream);
}

cudaError_t launch_action_head_backward(const ActionHeadBackwardParams& p, cudaStream_t stream) {
  return launch_any(p, stream);
}

}  // namespace dmamba::kernels
