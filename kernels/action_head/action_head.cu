// The action head and its loss on a CUDA device: one launch each way, where single ops take 20.
//
// Forward, a warp has a step's token in registers and multiplies it with one row of the weight
// after the other; the slope of the loss is left for the backward pass, which is then linear.
// Backward, a block has eight steps and a thread two columns: it writes the tokens' gradients and
// adds up the weight's on the way. Every block counts the real steps itself: a byte a step, which
// the cache holds. Sums have one order on any device.
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
  int64_t whole = 0;  // steps that are read 16 at a time: a byte each, which torch keeps 0 or 1
  if (reinterpret_cast<uintptr_t>(mask) % 16 == 0) {
    whole = steps / 16 * 16;
    for (int64_t i = int64_t{threadIdx.x} * 16; i < whole; i += int64_t{kThreads} * 16) {
      const uint4 flags = *reinterpret_cast<const uint4*>(mask + i);
      count += __popc(flags.x) + __popc(flags.y) + __popc(flags.z) + __popc(flags.w);
    }
  }
  for (int64_t i = whole + threadIdx.x; i < steps; i += kThreads) count += mask[i] ? 1 : 0;
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

constexpr int kActions = 4;  // of a round

/// A thread has two columns of kSteps steps; as many threads as a row has pairs, or all, are a
/// group, and a block's groups share its steps.
template <class T, int kSteps>
__global__ void __launch_bounds__(kThreads)
    action_head_backward_kernel(const __grid_constant__ ActionHeadBackwardParams p) {
  wait_for_stream();
  constexpr int kGroups = static_cast<int>(kHeadSteps) / kSteps, kPairs = kThreads / kGroups;
  __shared__ float shared[kGroups][kActions][2 * kPairs];
  float* slopes = dynamic_shared<float>();  // (kHeadSteps, act_dim)
  const int64_t block_step = int64_t{blockIdx.x} * kHeadSteps;
  const auto block_steps = static_cast<int>(min(kHeadSteps, p.steps - block_step));
  const auto act_dim = static_cast<int>(p.act_dim), width = static_cast<int>(p.width);
  const int group = static_cast<int>(threadIdx.x) / kPairs;
  const int pair = static_cast<int>(threadIdx.x) % kPairs;
  const int64_t first = (block_step + group * kSteps) * kTokens * width;
  const int steps =
      block_steps - group * kSteps;  // of this group that exist; perhaps more, or none
  const float dloss = *p.dloss;
  for (int i = static_cast<int>(threadIdx.x); i < kHeadSteps * act_dim; i += kThreads) {
    slopes[i] = i < block_steps * act_dim ? dloss * p.slopes[block_step * act_dim + i] : 0.0F;
  }
  const float* group_slopes = slopes + group * kSteps * act_dim;
  float* parts = p.parts + int64_t{blockIdx.x} * act_dim * (width + 1);
  for (int turn = 0; turn < width; turn += 2 * kPairs) {
    const int column = turn + 2 * pair;
    float y[kSteps][2] = {}, gradient[kSteps][2] = {};
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      if (column >= width || s >= steps) continue;
      load_pack<T, 2>(static_cast<const T*>(p.y) + first + (s * kTokens + kToken) * width + column,
                      y[s]);
    }
    for (int a = 0; a < act_dim; a += kActions) {
      __syncthreads();  // the slopes are there, and the sums of the round before are read
#pragma unroll
      for (int k = 0; k < kActions; ++k) {
        float weight[2] = {}, sums[2] = {};
        const bool exists = a + k < act_dim;
        if (exists && column < width)
          load_pack<float, 2>(p.weight + (a + k) * width + column, weight);
#pragma unroll
        for (int s = 0; s < kSteps; ++s) {
          const float slope = exists ? group_slopes[s * act_dim + a + k] : 0.0F;
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            gradient[s][e] = fmaf(slope, weight[e], gradient[s][e]);
            sums[e] = fmaf(slope, y[s][e], sums[e]);
          }
        }
        store_pack<float, 2>(&shared[group][k][2 * pair], sums);
      }
      __syncthreads();
      const int columns = min(2 * kPairs, width - turn), count = min(kActions, act_dim - a);
      for (int i = static_cast<int>(threadIdx.x); i < count * 2 * kPairs; i += kThreads) {
        const int k = i / (2 * kPairs), c = i % (2 * kPairs);
        float sum = shared[0][k][c];
#pragma unroll
        for (int g = 1; g < kGroups; ++g) sum += shared[g][k][c];
        if (c < columns) parts[(a + k) * width + turn + c] = sum;
      }
    }
    T* dy = static_cast<T*>(p.dy) + first + column;
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      if (column >= width || s >= steps) break;
      T* const step = dy + s * kTokens * width;
      store_pack<T, 2>(step, {0.0F, 0.0F});
      store_pack<T, 2>(step + width, gradient[s]);
      store_pack<T, 2>(step + 2 * width, {0.0F, 0.0F});
    }
  }
  for (int a = static_cast<int>(threadIdx.x); a < act_dim; a += kThreads) {
    float sum = 0.0F;
    for (int s = 0; s < block_steps; ++s) sum += slopes[s * act_dim + a];
    parts[act_dim * width + a] = sum;
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
  const auto kernel = p.width <= 128   ? action_head_backward_kernel<T, 2>
                      : p.width <= 256 ? action_head_backward_kernel<T, 4>
                                       : action_head_backward_kernel<T, 8>;
  return launch_early(kernel, blocks, kThreads, bytes, stream, p);
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
