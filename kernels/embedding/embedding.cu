// The token embedding on a CUDA device: three small linear layers, the timestep's embedding,
// LayerNorm and dropout in one launch, where single ops take 25.
//
// A warp takes a few steps' tokens of one kind, a block stages that kind's weight eight features at
// a time; the values have few features (1, a state's, an action's), and fp32 multiply-adds do them.
//
// The gradients: a block of embedding_weights has 32 steps and one kind, a thread a column, and
// leaves its sums in parts. The timestep's rows collide; a block of time_gradient owns a row of the
// table, collects the steps that used it in order, and adds them up in slices and then the slices:
// one order on any device, and no zeros to fill in before.
#include <type_traits>

#include "kernels/common/launch.cuh"
#include "kernels/embedding/launch.h"
#include "kernels/normalization/row.cuh"

namespace dmamba::kernels {
namespace {

constexpr int kWarps = 8, kThreads = kWarps * 32;
constexpr int kWarpSteps = 2;
constexpr int kFeatures = 8;  // of a round

/// Columns [feature, feature + kFeatures) of a kind's weight, transposed: (kFeatures, width). All
/// threads call it.
__device__ void stage_weight(const TokenKind& kind, int64_t width, int64_t feature, float* staged) {
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < width * kFeatures; i += kThreads) {
    const int64_t column = i / kFeatures, f = feature + i % kFeatures;
    staged[i % kFeatures * width + column] =
        f < kind.features ? kind.weight[column * kind.features + f] : 0.0F;
  }
  __syncthreads();
}

/// Adds weight value of kWarpSteps steps.
template <int kTurns>
__device__ void multiply_values(const TokenKind& kind, const int64_t (&steps)[kWarpSteps],
                                int64_t feature, const float* staged, const Lane& lane,
                                Row<kTurns> (&tokens)[kWarpSteps]) {
#pragma unroll
  for (int f = 0; f < kFeatures; ++f) {
    if (feature + f >= kind.features) return;
    float values[kWarpSteps];
#pragma unroll
    for (int s = 0; s < kWarpSteps; ++s) {
      values[s] = kind.values[steps[s] * kind.features + feature + f];
    }
    const Row<kTurns> weight = load_row<kTurns>(staged + f * lane.width, lane);
#pragma unroll
    for (int s = 0; s < kWarpSteps; ++s) {
#pragma unroll
      for (int i = 0; i < kTurns; ++i) {
#pragma unroll
        for (int e = 0; e < kRowVector; ++e) {
          tokens[s].v[i][e] = fmaf(weight.v[i][e], values[s], tokens[s].v[i][e]);
        }
      }
    }
  }
}

/// bias + time of kWarpSteps steps.
template <int kTurns>
__device__ void begin_tokens(const EmbeddingParams& p, const TokenKind& kind,
                             const int64_t (&steps)[kWarpSteps], const Lane& lane,
                             Row<kTurns> (&tokens)[kWarpSteps]) {
  const Row<kTurns> bias = load_row<kTurns>(kind.bias, lane);
#pragma unroll
  for (int s = 0; s < kWarpSteps; ++s) {
    const int64_t t = kind.timesteps[steps[s]];
    const int64_t row = t < 0 ? 0 : t < p.max_timestep ? t : p.max_timestep - 1;
    tokens[s] = load_row<kTurns>(p.time + row * p.width, lane);
#pragma unroll
    for (int i = 0; i < kTurns; ++i) {
#pragma unroll
      for (int e = 0; e < kRowVector; ++e) tokens[s].v[i][e] += bias.v[i][e];
    }
  }
}

template <int kTurns>
__global__ void __launch_bounds__(kThreads)
    embedding_kernel(const __grid_constant__ EmbeddingParams p) {
  wait_for_stream();
  extern __shared__ float staged[];  // (kFeatures, width)
  const Lane lane{static_cast<int>(threadIdx.x) % 32, static_cast<int>(p.width)};
  const int64_t first = (int64_t{blockIdx.x} * kWarps + threadIdx.x / 32) * kWarpSteps;
  const TokenKind& kind = p.kinds[blockIdx.y];
  int64_t steps[kWarpSteps];  // the last one again where there are fewer
#pragma unroll
  for (int s = 0; s < kWarpSteps; ++s) steps[s] = min(first + s, p.steps - 1);
  Row<kTurns> tokens[kWarpSteps];
  begin_tokens(p, kind, steps, lane, tokens);
  for (int64_t feature = 0; feature < kind.features; feature += kFeatures) {
    stage_weight(kind, p.width, feature, staged);
    multiply_values(kind, steps, feature, staged, lane, tokens);
  }
  const uint64_t key = p.dropout.key != nullptr ? static_cast<uint64_t>(*p.dropout.key) : 0;
#pragma unroll
  for (int s = 0; s < kWarpSteps; ++s) {
    if (first + s >= p.steps) return;
    const int64_t row = (first + s) * kTokenKinds + blockIdx.y;
    store_row(p.tokens + row * p.width, tokens[s], lane);
    const RowStatistics statistics = statistics_of(tokens[s], p.epsilon, lane);
    if (lane.lane == 0) {
      store_pack<float, 2>(p.statistics + 2 * row, {statistics.mean, statistics.rstd});
      if (p.mask != nullptr) p.token_mask[row] = p.mask[first + s];
    }
    Row<kTurns> out = normalise(tokens[s], statistics, p.norm_weight, p.norm_bias, lane);
    if (p.dropout.key != nullptr) apply_dropout(out, p.dropout, key, row, lane);
    store_row(p.out + row * p.width, out, lane);
  }
}

__global__ void __launch_bounds__(kThreads)
    embedding_weights_kernel(const __grid_constant__ EmbeddingWeightsParams p) {
  const int64_t first = int64_t{blockIdx.x} * kEmbeddingSteps;
  const auto steps = static_cast<int>(min(kEmbeddingSteps, p.steps - first));
  int64_t columns = 0, column = 0;  // of all kinds, and before this one, each of width numbers
#pragma unroll
  for (int k = 0; k < kTokenKinds; ++k) {
    if (k == static_cast<int>(blockIdx.y)) column = columns;
    columns += p.kinds[k].features + 1;
  }
  const TokenKind kind = p.kinds[blockIdx.y];
  const float* dtokens = p.dtokens + (first * kTokenKinds + blockIdx.y) * p.width;
  float* parts = p.parts + (int64_t{blockIdx.x} * columns + column) * p.width;
  __shared__ float values[kEmbeddingSteps][kFeatures];
  for (int64_t feature = 0; feature <= kind.features; feature += kFeatures) {
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < steps * kFeatures; i += kThreads) {
      const int64_t step = i / kFeatures, f = feature + i % kFeatures;
      values[step][i % kFeatures] =
          f < kind.features ? kind.values[(first + step) * kind.features + f] : 1.0F;  // the bias
    }
    __syncthreads();
    for (int64_t c = threadIdx.x; c < p.width; c += kThreads) {
      float sums[kFeatures] = {};
#pragma unroll 8
      for (int step = 0; step < steps; ++step) {
        const float gradient = dtokens[step * kTokenKinds * p.width + c];
#pragma unroll
        for (int f = 0; f < kFeatures; ++f) sums[f] = fmaf(gradient, values[step][f], sums[f]);
      }
#pragma unroll
      for (int f = 0; f < kFeatures; ++f) {
        if (feature + f < kind.features) parts[c * kind.features + feature + f] = sums[f];
        if (feature + f == kind.features) parts[kind.features * p.width + c] = sums[f];
      }
    }
  }
}

constexpr int kTimeThreads = 512, kTimeWarps = kTimeThreads / 32;

/// Appends the steps of [first, first + kTimeThreads) that have this timestep, in order.
__device__ int collect_steps(const TimeGradientParams& p, int64_t first, int64_t row, int* found) {
  __shared__ int counts[kTimeWarps];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t step = first + threadIdx.x;
  bool mine = false;
  if (step < p.steps) {
    const int64_t t = p.timesteps[step];
    mine = (t < 0 ? 0 : t < p.max_timestep ? t : p.max_timestep - 1) == row;
  }
  const uint32_t matches = __ballot_sync(~0U, mine);
  if (lane == 0) counts[warp] = __popc(matches);
  __syncthreads();
  int before = 0, total = 0;
#pragma unroll
  for (int w = 0; w < kTimeWarps; ++w) {
    if (w < warp) before += counts[w];
    total += counts[w];
  }
  if (mine) found[before + __popc(matches & ((1U << lane) - 1U))] = static_cast<int>(step - first);
  __syncthreads();
  return total;
}

template <int kTurns>
__global__ void __launch_bounds__(kTimeThreads)
    time_gradient_kernel(const __grid_constant__ TimeGradientParams p) {
  __shared__ int found[kTimeThreads];
  __shared__ float slices[kTimeWarps][kRowTurn];
  const Lane lane{static_cast<int>(threadIdx.x) % 32, static_cast<int>(p.width)};
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t row = blockIdx.x;
  Row<kTurns> sum = {};
  for (int64_t first = 0; first < p.steps; first += kTimeThreads) {
    const int count = collect_steps(p, first, row, found);
    for (int i = warp; i < count; i += kTimeWarps) {
      const float* tokens = p.dtokens + (first + found[i]) * kTokenKinds * p.width;
#pragma unroll
      for (int k = 0; k < kTokenKinds; ++k) {
        const Row<kTurns> token = load_row<kTurns>(tokens + k * p.width, lane);
#pragma unroll
        for (int t = 0; t < kTurns; ++t) {
#pragma unroll
          for (int e = 0; e < kRowVector; ++e) sum.v[t][e] += token.v[t][e];
        }
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int t = 0; t < kTurns; ++t) {
    __syncthreads();
    store_pack<float, kRowVector>(&slices[warp][lane.lane * kRowVector], sum.v[t]);
    __syncthreads();
    const auto column = static_cast<int>(threadIdx.x);
    if (column < kRowTurn && t * kRowTurn + column < p.width) {
      float total = slices[0][column];
#pragma unroll
      for (int w = 1; w < kTimeWarps; ++w) total += slices[w][column];
      p.dtime[row * p.width + t * kRowTurn + column] = total;
    }
  }
}

unsigned blocks_for(int64_t count, int64_t each) {
  return static_cast<unsigned>((count + each - 1) / each);
}

}  // namespace

cudaError_t launch_embedding(const EmbeddingParams& p, cudaStream_t stream) {
  if (!norm_width_fits(p.width)) return cudaErrorInvalidValue;
  if (p.steps == 0) return cudaSuccess;
  return with_row_turns(p.width, [&](auto turns) {
    const dim3 grid(blocks_for(p.steps, kWarps * kWarpSteps), kTokenKinds);
    const size_t bytes = static_cast<size_t>(kFeatures * p.width) * sizeof(float);
    return launch_early(embedding_kernel<turns()>, grid, kThreads, bytes, stream, p);
  });
}

cudaError_t launch_embedding_weights(const EmbeddingWeightsParams& p, cudaStream_t stream) {
  if (p.steps == 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>(embedding_weight_blocks(p.steps)), kTokenKinds);
  embedding_weights_kernel<<<grid, kThreads, 0, stream>>>(p);
  return cudaGetLastError();
}

cudaError_t launch_time_gradient(const TimeGradientParams& p, cudaStream_t stream) {
  if (!norm_width_fits(p.width)) return cudaErrorInvalidValue;
  if (p.max_timestep == 0) return cudaSuccess;
  return with_row_turns(p.width, [&](auto turns) {
    time_gradient_kernel<turns()>
        <<<static_cast<unsigned>(p.max_timestep), kTimeThreads, 0, stream>>>(p);
    return cudaGetLastError();
  });
}

}  // namespace dmamba::kernels
