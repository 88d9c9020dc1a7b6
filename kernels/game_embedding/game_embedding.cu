// The token embedding of games on a CUDA device: one launch forward, three backward, where single
// ops take 25 and 60, sorts of the indices among them. Bound by memory and latency.
//
// Forward, a warp a token. Backward, by what is summed over what, each sum in an order that the
// sizes alone decide:
//   steps    a block has 16 steps, a warp some of them with a table of its own in shared memory:
//   the
//            gradients of the action's table and of the returns' layer, left in parts;
//   places   a block a row of `local`: the sum over the batch;
//   times    a block a segment: its sum over the tokens goes to its row of `global`; of segments
//            that share a row the first adds up all.
#include <type_traits>

#include "kernels/common/launch.cuh"
#include "kernels/game_embedding/launch.h"
#include "kernels/normalization/row.cuh"

namespace dmamba::kernels {
namespace {

constexpr int kWarps = 8, kThreads = kWarps * 32;
constexpr int kKinds = 3;

/// Rows of padding in front of a segment; by all lanes of a warp.
__device__ int64_t padding_of(const GameTokens& p, int64_t segment, int lane) {
  if (p.mask == nullptr || p.mask[segment * p.steps]) return 0;
  int64_t count = 0;
  for (int64_t k = lane; k < p.steps; k += 32) count += p.mask[segment * p.steps + k] ? 0 : 1;
  return static_cast<int64_t>(sum_warp(static_cast<float>(count)));
}

__device__ int64_t time_of(const GameTokens& p, int64_t segment) {
  const int64_t t = p.timesteps[segment], last = p.max_timestep - 1;
  return t < 0 ? 0 : t < last ? t : last;
}

__device__ int64_t action_of(const GameTokens& p, int64_t step) {
  const int64_t action = p.actions[step], last = p.num_actions - 1;
  return action < 0 ? 0 : action < last ? action : last;
}

template <int kTurns, class F>
__device__ __forceinline__ void each(Row<kTurns>& row, F&& f) {
#pragma unroll
  for (int i = 0; i < kTurns; ++i) {
#pragma unroll
    for (int e = 0; e < kRowVector; ++e) f(row.v[i][e], i, e);
  }
}

/// tanh(return weight + bias) or tanh(table[action]) of a step.
template <int kTurns>
__device__ Row<kTurns> return_value(const GameTokens& p, int64_t step, const Lane& lane) {
  const Row<kTurns> weight = load_row<kTurns>(p.return_weight, lane);
  Row<kTurns> row = load_row<kTurns>(p.return_bias, lane);
  const float value = p.returns_to_go[step];
  each(row, [&](float& x, int i, int e) { x = tanhf(fmaf(weight.v[i][e], value, x)); });
  return row;
}

template <int kTurns>
__device__ Row<kTurns> action_value(const GameTokens& p, int64_t step, const Lane& lane) {
  Row<kTurns> row = load_row<kTurns>(p.action_table + action_of(p, step) * p.width, lane);
  each(row, [](float& x, int, int) { x = tanhf(x); });
  return row;
}

template <int kTurns>
__global__ void __launch_bounds__(kThreads)
    game_embedding_kernel(const __grid_constant__ GameEmbeddingParams params) {
  const GameTokens& p = params.tokens;
  const Lane lane{static_cast<int>(threadIdx.x) % 32, static_cast<int>(p.width)};
  const int64_t token = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (token >= p.batch * p.steps * kKinds) return;
  const int64_t step = token / kKinds, segment = step / p.steps;
  const int kind = static_cast<int>(token - step * kKinds);
  const int64_t position = step - segment * p.steps - padding_of(p, segment, lane.lane);
  Row<kTurns> out = kind == 0   ? return_value<kTurns>(p, step, lane)
                    : kind == 1 ? load_row<kTurns>(p.states + step * p.width, lane)
                                : action_value<kTurns>(p, step, lane);
  const int64_t place = kKinds * (position < 0 ? 0 : position) + kind;
  const Row<kTurns> here = load_row<kTurns>(p.local + place * p.width, lane);
  const Row<kTurns> time = load_row<kTurns>(p.global + time_of(p, segment) * p.width, lane);
  each(out, [&](float& x, int i, int e) { x += time.v[i][e] + here.v[i][e]; });
  if (p.dropout.key != nullptr) {
    apply_dropout(out, p.dropout, static_cast<uint64_t>(*p.dropout.key), token, lane);
  }
  store_row(params.out + token * p.width, out, lane);
  if (p.mask != nullptr && lane.lane == 0) params.token_mask[token] = p.mask[step];
}

/// Adds a row to one in shared memory that this warp owns.
template <int kTurns>
__device__ __forceinline__ void add_to(float* shared, const Row<kTurns>& row, const Lane& lane) {
  Row<kTurns> sum = load_row<kTurns>(shared, lane);
  each(sum, [&](float& x, int i, int e) { x += row.v[i][e]; });
  store_row(shared, sum, lane);
}

constexpr int kTableWarps = 4;  // of a block of steps: each has a table in shared memory

template <int kTurns>
__global__ void __launch_bounds__(kTableWarps * 32)
    steps_backward_kernel(const __grid_constant__ GameEmbeddingGradients params) {
  float* tables = dynamic_shared<float>();  // (warps, num_actions + 2, width)
  const GameTokens& p = params.tokens;
  const Lane lane{static_cast<int>(threadIdx.x) % 32, static_cast<int>(p.width)};
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t rows = p.num_actions + 2, size = rows * p.width;
  for (int64_t i = threadIdx.x; i < kTableWarps * size; i += kTableWarps * 32) tables[i] = 0.0F;
  __syncthreads();
  float* table = tables + warp * size;
  const uint64_t key = p.dropout.key != nullptr ? static_cast<uint64_t>(*p.dropout.key) : 0;
  const int64_t first = int64_t{blockIdx.x} * kGameSteps;
  const int64_t end = min(first + kGameSteps, p.batch * p.steps);
  for (int64_t step = first + warp; step < end; step += kTableWarps) {
    Row<kTurns> slopes[kKinds];
#pragma unroll
    for (int kind = 0; kind < kKinds; ++kind) {
      const int64_t token = step * kKinds + kind;
      slopes[kind] = load_row<kTurns>(params.dout + token * p.width, lane);
      if (p.dropout.key == nullptr) continue;
      apply_dropout(slopes[kind], p.dropout, key, token, lane);
      store_row(params.dtokens + token * p.width, slopes[kind], lane);
    }
    store_row(params.dstates + step * p.width, slopes[1], lane);
    const auto through_tanh = [](Row<kTurns>& slope, const Row<kTurns>& value) {
      each(slope, [&](float& x, int i, int e) { x *= 1.0F - value.v[i][e] * value.v[i][e]; });
    };
    through_tanh(slopes[2], action_value<kTurns>(p, step, lane));
    add_to(table + action_of(p, step) * p.width, slopes[2], lane);
    through_tanh(slopes[0], return_value<kTurns>(p, step, lane));
    add_to(table + (p.num_actions + 1) * p.width, slopes[0], lane);
    const float value = p.returns_to_go[step];
    each(slopes[0], [&](float& x, int, int) { x *= value; });
    add_to(table + p.num_actions * p.width, slopes[0], lane);
  }
  __syncthreads();
  for (int64_t i = threadIdx.x; i < size; i += kTableWarps * 32) {
    float sum = tables[i];
#pragma unroll
    for (int w = 1; w < kTableWarps; ++w) sum += tables[w * size + i];
    params.parts[int64_t{blockIdx.x} * size + i] = sum;
  }
}

/// Adds the warps' rows in order and stores the sum. All threads call it.
template <int kTurns>
__device__ void add_warps(const Row<kTurns>& row, float* to, const Lane& lane) {
  __shared__ float shared[kWarps][kTurns * kRowTurn];
  store_row<kTurns>(&shared[threadIdx.x / 32][0], row, lane);
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < lane.width; i += kThreads) {
    float sum = shared[0][i];
#pragma unroll
    for (int w = 1; w < kWarps; ++w) sum += shared[w][i];
    to[i] = sum;
  }
}

template <int kTurns>
__device__ __forceinline__ void add_row(Row<kTurns>& sum, const float* from, const Lane& lane) {
  const Row<kTurns> row = load_row<kTurns>(from, lane);
  each(sum, [&](float& x, int i, int e) { x += row.v[i][e]; });
}

template <int kTurns>
__global__ void __launch_bounds__(kThreads)
    places_backward_kernel(const __grid_constant__ GameEmbeddingGradients params) {
  const GameTokens& p = params.tokens;
  const Lane lane{static_cast<int>(threadIdx.x) % 32, static_cast<int>(p.width)};
  const int64_t place = blockIdx.x, position = place / kKinds, kind = place % kKinds;
  Row<kTurns> sum = {};
  if (position < p.steps) {
    for (int64_t segment = threadIdx.x / 32; segment < p.batch; segment += kWarps) {
      // Padding counts as position 0, as in the forward pass.
      const int64_t padding = padding_of(p, segment, lane.lane);
      const int64_t from = position == 0 ? 0 : padding + position;
      const int64_t to = min(position == 0 ? padding + 1 : from + 1, p.steps);
      for (int64_t k = from; k < to; ++k) {
        const int64_t token = (segment * p.steps + k) * kKinds + kind;
        add_row(sum, params.dtokens + token * p.width, lane);
      }
    }
  }
  add_warps(sum, params.dlocal + place * p.width, lane);
}

template <int kTurns>
__global__ void __launch_bounds__(kThreads)
    times_backward_kernel(const __grid_constant__ GameEmbeddingGradients params) {
  const GameTokens& p = params.tokens;
  const Lane lane{static_cast<int>(threadIdx.x) % 32, static_cast<int>(p.width)};
  const int64_t time = time_of(p, blockIdx.x), tokens = p.steps * kKinds;
  bool earlier = false;
  for (int64_t s = threadIdx.x; s < blockIdx.x; s += kThreads) earlier |= time_of(p, s) == time;
  if (__syncthreads_or(earlier)) return;
  Row<kTurns> sum = {};
  for (int64_t segment = blockIdx.x; segment < p.batch; ++segment) {
    if (time_of(p, segment) != time) continue;
    for (int64_t t = threadIdx.x / 32; t < tokens; t += kWarps) {
      add_row(sum, params.dtokens + (segment * tokens + t) * p.width, lane);
    }
  }
  add_warps(sum, params.dglobal + time * p.width, lane);
}

}  // namespace

cudaError_t launch_game_embedding(const GameEmbeddingParams& p, cudaStream_t stream) {
  const GameTokens& t = p.tokens;
  if (!game_sizes_fit(t.width, t.num_actions)) return cudaErrorInvalidValue;
  const int64_t tokens = t.batch * t.steps * kKinds;
  if (tokens == 0) return cudaSuccess;
  return with_row_turns(t.width, [&](auto turns) {
    const auto blocks = static_cast<unsigned>((tokens + kWarps - 1) / kWarps);
    return launch_kernel(game_embedding_kernel<turns()>, blocks, kThreads, 0, stream, p);
  });
}

cudaError_t launch_game_embedding_backward(const GameEmbeddingGradients& p, cudaStream_t stream) {
  const GameTokens& t = p.tokens;
  if (!game_sizes_fit(t.width, t.num_actions)) return cudaErrorInvalidValue;
  return with_row_turns(t.width, [&](auto turns) {
    const auto add_places = [&] {
      if (p.local_rows == 0) return cudaSuccess;
      return launch_kernel(places_backward_kernel<turns()>, static_cast<unsigned>(p.local_rows),
                           kThreads, 0, stream, p);
    };
    if (t.batch * t.steps == 0) return add_places();  // zeros
    const size_t bytes = kTableWarps * (t.num_actions + 2) * t.width * sizeof(float);
    cudaError_t error = launch_kernel(steps_backward_kernel<turns()>,
                                      static_cast<unsigned>(game_blocks(t.batch, t.steps)),
                                      kTableWarps * 32, bytes, stream, p);
    if (error != cudaSuccess) return error;
    error = add_places();
    if (error != cudaSuccess) return error;
    return launch_kernel(times_backward_kernel<turns()>, static_cast<unsigned>(t.batch), kThreads,
                         0, stream, p);
  });
}

}  // namespace dmamba::kernels
