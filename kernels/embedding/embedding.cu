// The token embedding on a CUDA device: three small linear layers, the timestep's embedding,
// LayerNorm, dropout and the first layer's norm in one launch, where single ops take 26.
//
// A warp takes a few steps' tokens of one kind, a block stages that kind's weight some features at
// a time; the values have few features (1, a state's, an action's), and fp32 multiply-adds do them.
// Bound by latency: the timestep, its row, the rounds of shuffles; all other loads run beside.
#include <type_traits>

#include "kernels/common/launch.cuh"
#include "kernels/embedding/launch.h"
#include "kernels/normalization/row.cuh"

namespace dmamba::kernels {
namespace {

constexpr int kThreads = kEmbeddingWarps * 32;

/// Steps of a warp; features of a round, at most a warp's lanes. Wide rows leave less room.
template <int kTurns>
constexpr int kWarpSteps = kTurns <= 2 ? 2 : 1;
template <int kTurns>
constexpr int kFeatures = kTurns <= 4 ? 16 : 8;

/// Of a row of staged weights: 4 more than the width, or lanes that stage a column's features would
/// all want one bank.
__host__ __device__ constexpr int64_t staged_pitch(int64_t width) { return width + 4; }

/// Begins to fetch columns [feature, feature + kCount) of a kind's weight, transposed, to
/// (kCount, pitch), zeros beyond the last. By all threads, then wait_for_copies() and a barrier.
template <int kCount>
__device__ void stage_weight(const TokenKind& kind, int64_t width, int64_t feature, float* staged) {
#pragma unroll 4
  for (int i = static_cast<int>(threadIdx.x); i < width * kCount; i += kThreads) {
    const int64_t column = i / kCount, f = feature + i % kCount;
    const bool there = f < kind.features;
    copy_async<4>(staged + i % kCount * staged_pitch(width) + column,
                  kind.weight + (there ? column * kind.features + f : 0), there);
  }
}

/// A lane's value of a step: that of a round's feature.
template <int kCount>
__device__ float load_value(const TokenKind& kind, int64_t step, int64_t feature, int lane) {
  const int64_t f = feature + lane;
  return lane < kCount && f < kind.features ? kind.values[step * kind.features + f] : 0.0F;
}

/// Adds the round's part of weight value.
template <int kTurns, int kSteps>
__device__ void multiply_values(const float (&values)[kSteps], int features, const float* staged,
                                const Lane& lane, Row<kTurns> (&tokens)[kSteps]) {
#pragma unroll 4
  for (int f = 0; f < features; ++f) {
    const Row<kTurns> weight = load_row<kTurns>(staged + f * staged_pitch(lane.width), lane);
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const float value = __shfl_sync(~0U, values[s], f);
#pragma unroll
      for (int i = 0; i < kTurns; ++i) {
#pragma unroll
        for (int e = 0; e < kRowVector; ++e) {
          tokens[s].v[i][e] = fmaf(weight.v[i][e], value, tokens[s].v[i][e]);
        }
      }
    }
  }
}

/// The tokens before the norm: bias + time, then the linear layer.
template <int kTurns, int kSteps>
__device__ void make_tokens(const EmbeddingParams& p, const TokenKind& kind, int64_t first,
                            float* staged, const Lane& lane, Row<kTurns> (&tokens)[kSteps]) {
  constexpr int kCount = kFeatures<kTurns>;
  int64_t steps[kSteps], rows[kSteps];  // the last step again where there are fewer
  float values[kSteps];
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
    steps[s] = min(first + s, p.steps - 1);
    rows[s] = kind.timesteps[steps[s]];
    values[s] = load_value<kCount>(kind, steps[s], 0, lane.lane);
  }
  if (kind.features > 0) stage_weight<kCount>(kind, p.width, 0, staged);
  const Row<kTurns> bias = load_row<kTurns>(kind.bias, lane);
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
    const int64_t t = rows[s], row = t < 0 ? 0 : t < p.max_timestep ? t : p.max_timestep - 1;
    tokens[s] = load_row<kTurns>(p.time + row * p.width, lane);
    add_row(tokens[s], bias);
  }
  for (int64_t feature = 0; feature < kind.features; feature += kCount) {
    const int64_t left = kind.features - feature;
    wait_for_copies();
    __syncthreads();
    multiply_values(values, static_cast<int>(left < kCount ? left : kCount), staged, lane, tokens);
    if (left <= kCount) break;
    __syncthreads();
    stage_weight<kCount>(kind, p.width, feature + kCount, staged);
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      values[s] = load_value<kCount>(kind, steps[s], feature + kCount, lane.lane);
    }
  }
}

/// The parameters of both norms.
template <int kTurns>
struct Norms {
  Row<kTurns> weight, bias, next_weight, next_bias;
};

template <bool kNext, int kTurns>
__device__ __forceinline__ void load_norms(const EmbeddingParams& p, const Lane& lane,
                                           Norms<kTurns>& norms) {
  norms.weight = load_row<kTurns>(p.norm_weight, lane);
  norms.bias = load_row<kTurns>(p.norm_bias, lane);
  if (kNext) {
    norms.next_weight = load_row<kTurns>(p.next.weight, lane);
    norms.next_bias = load_row<kTurns>(p.next.bias, lane);
  }
}

/// LayerNorm(out), in the next layer's type.
template <class T, int kTurns, int kSteps>
__device__ void leave_normed(const EmbeddingParams& p, int64_t first, const Norms<kTurns>& norms,
                             const Row<kTurns> (&out)[kSteps], const Lane& lane) {
  RowStatistics statistics[kSteps];
  statistics_of(out, p.next.epsilon, lane, statistics);
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
    if (first + s >= p.steps) return;
    const int64_t row = (first + s) * kTokenKinds + blockIdx.y;
    store_row(static_cast<T*>(p.next.normed) + row * p.width,
              normalise(out[s], statistics[s], norms.next_weight, norms.next_bias), lane);
    if (lane.lane == 0) store_statistics(p.next.statistics, row, statistics[s]);
  }
}

/// T: of the next norm's result; void: there is none.
template <int kTurns, class T>
__global__ void __launch_bounds__(kThreads)
    embedding_kernel(const __grid_constant__ EmbeddingParams p) {
  wait_for_stream();
  constexpr int kSteps = kWarpSteps<kTurns>;
  constexpr bool kNext = !std::is_void_v<T>;
  float* staged = dynamic_shared<float>();  // (features of a round, pitch)
  const Lane lane{static_cast<int>(threadIdx.x) % 32, static_cast<int>(p.width)};
  const int64_t first = (int64_t{blockIdx.x} * kEmbeddingWarps + threadIdx.x / 32) * kSteps;
  Row<kTurns> tokens[kSteps];
  // Early where there is room, and before the stores, which loads don't overtake.
  constexpr bool kEarly = kTurns <= 2;
  Norms<kTurns> norms;
  if (kEarly) load_norms<kNext>(p, lane, norms);
  const uint64_t key = p.dropout.key != nullptr ? static_cast<uint64_t>(*p.dropout.key) : 0;
  make_tokens(p, p.kinds[blockIdx.y], first, staged, lane, tokens);
  if (!kEarly) load_norms<kNext>(p, lane, norms);
  RowStatistics statistics[kSteps];
  statistics_of(tokens, p.epsilon, lane, statistics);
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
    const int64_t step = first + s, row = step * kTokenKinds + blockIdx.y;
    const Row<kTurns> token = tokens[s];
    tokens[s] = normalise(token, statistics[s], norms.weight, norms.bias);
    if (p.dropout.key != nullptr) apply_dropout(tokens[s], p.dropout, key, row, lane);
    if (step >= p.steps) continue;
    store_row(p.tokens + row * p.width, token, lane);
    store_row(p.out + row * p.width, tokens[s], lane);
    if (lane.lane == 0) {
      store_statistics(p.statistics, row, statistics[s]);
      if (p.mask != nullptr) p.token_mask[row] = p.mask[step];
    }
  }
  if constexpr (kNext) leave_normed<T>(p, first, norms, tokens, lane);
}

}  // namespace

cudaError_t launch_embedding(const EmbeddingParams& p, cudaStream_t stream) {
  if (!norm_width_fits(p.width)) return cudaErrorInvalidValue;
  if (p.steps == 0) return cudaSuccess;
  return with_row_turns(p.width, [&](auto turns) {
    constexpr int kTurns = turns();
    const auto kernel = p.next.weight == nullptr               ? embedding_kernel<kTurns, void>
                        : p.next.storage == Storage::kBFloat16 ? embedding_kernel<kTurns, bfloat16>
                                                               : embedding_kernel<kTurns, float>;
    constexpr int64_t kBlockSteps = kEmbeddingWarps * kWarpSteps<kTurns>;
    const dim3 grid(static_cast<unsigned>((p.steps + kBlockSteps - 1) / kBlockSteps), kTokenKinds);
    const size_t bytes =
        static_cast<size_t>(kFeatures<kTurns> * staged_pitch(p.width)) * sizeof(float);
    return launch_early(kernel, grid, kThreads, bytes, stream, p);
  });
}

}  // namespace dmamba::kernels
