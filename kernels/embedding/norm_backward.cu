// The way back through the embedding's dropout and norm, and through the first layer's norm where
// the forward pass did that too: the gradients of the tokens, and each step's tokens added up.
//
// A warp has a step's three tokens; what the dropout left is worked out again, so that a number of
// `normed`'s gradient costs 16 or 18 bytes beside the same of the residual stream. At the sizes of
// RL: the latency of one round of loads and two of shuffles.
#include <type_traits>

#include "kernels/common/launch.cuh"
#include "kernels/embedding/launch.h"
#include "kernels/normalization/row.cuh"

namespace dmamba::kernels {
namespace {

constexpr int kThreads = kEmbeddingWarps * 32;

/// A step's tokens that a warp has in flight; where rows are wide, one after the other.
template <int kTurns>
constexpr int kAtOnce = kTurns == 1 ? kTokenKinds : 1;

/// Blocks of a multiprocessor: with embedding_norm_blocks all of them at once.
template <int kTurns>
constexpr int kResident = kTurns <= 2 ? 2 : 1;

template <int kTurns>
struct Parameters {
  Row<kTurns> weight, bias, next_weight;  // bias and next_weight where there is a next norm
};

/// Sums over a block's rows: for the norm's weight and bias, and for the next norm's.
template <int kTurns, bool kNext>
using Sums = Row<kTurns>[kNext ? 4 : 2];

/// Rows [first, first + kCount): writes dtokens and adds to dstep. T: as in embedding_kernel.
template <class T, int kCount, int kTurns, int kSums>
__device__ __forceinline__ void go_back(const EmbeddingNormParams& p, int64_t first,
                                        const Parameters<kTurns>& parameters,
                                        Row<kTurns> (&sums)[kSums], Row<kTurns>& dstep,
                                        const Lane& lane) {
  constexpr bool kNext = !std::is_void_v<T>;
  Row<kTurns> gradient[kCount], tokens[kCount], dnormed[kCount];
  RowStatistics statistics[kCount], next[kCount];
  // All loads first, without branches, in which they would be waited for; the key among them, or
  // what is worked out of it before would wait for it.
  const uint64_t key = p.dropout.key != nullptr ? static_cast<uint64_t>(*p.dropout.key) : 0;
#pragma unroll
  for (int r = 0; r < kCount; ++r) {
    const int64_t row = first + r, at = row * p.width;
    tokens[r] = load_row<kTurns>(p.tokens + at, lane);
    gradient[r] = load_row<kTurns>((p.dout != nullptr ? p.dout : p.tokens) + at, lane);
    statistics[r] = load_statistics(p.statistics, row);
    if constexpr (kNext) {
      dnormed[r] = load_row<kTurns>(static_cast<const T*>(p.dnormed) + at, lane);
      next[r] = load_statistics(p.next.statistics, row);
    }
  }
  Kept<kTurns> kept[kCount];
#pragma unroll
  for (int r = 0; r < kCount; ++r) {
    if (p.dout == nullptr) gradient[r] = {};
    if (p.dropout.key != nullptr) kept[r] = kept_of<kTurns>(p.dropout, key, first + r, lane);
  }
  if constexpr (kNext) {
    Row<kTurns> out[kCount], through[kCount];
#pragma unroll
    for (int r = 0; r < kCount; ++r) {
      out[r] = normalise(tokens[r], statistics[r], parameters.weight, parameters.bias);
      if (p.dropout.key != nullptr) drop(out[r], kept[r], p.dropout.scale);
    }
    norm_gradients(dnormed, out, next, parameters.next_weight, through, sums[2], sums[3], lane);
#pragma unroll
    for (int r = 0; r < kCount; ++r) add_row(gradient[r], through[r]);
  }
#pragma unroll
  for (int r = 0; r < kCount; ++r) {
    if (p.dropout.key != nullptr) drop(gradient[r], kept[r], p.dropout.scale);
  }
  Row<kTurns> dtokens[kCount];
  norm_gradients(gradient, tokens, statistics, parameters.weight, dtokens, sums[0], sums[1], lane);
#pragma unroll
  for (int r = 0; r < kCount; ++r) {
    store_row(p.dtokens + (first + r) * p.width, dtokens[r], lane);
    add_row(dstep, dtokens[r]);
  }
}

template <int kTurns, class T>
__global__ void __launch_bounds__(kThreads, kResident<kTurns>)
    norm_backward_kernel(const __grid_constant__ EmbeddingNormParams p) {
  wait_for_stream();
  constexpr bool kNext = !std::is_void_v<T>;
  const Lane lane{static_cast<int>(threadIdx.x) % 32, static_cast<int>(p.width)};
  if (blockIdx.x == 0) {
#pragma unroll 1
    for (int64_t i = threadIdx.x; i < p.n_tickets; i += kThreads) p.tickets[i] = 0;
  }
  Parameters<kTurns> parameters;
  parameters.weight = load_row<kTurns>(p.weight, lane);
  if (kNext) {
    parameters.bias = load_row<kTurns>(p.bias, lane);
    parameters.next_weight = load_row<kTurns>(p.next.weight, lane);
  }
  Sums<kTurns, kNext> sums = {};
  int64_t step = int64_t{blockIdx.x} * kEmbeddingWarps + threadIdx.x / 32;
  for (; step < p.steps; step += int64_t{gridDim.x} * kEmbeddingWarps) {
    constexpr int kCount = kAtOnce<kTurns>;
    Row<kTurns> dstep = {};
#pragma unroll 1
    for (int k = 0; k < kTokenKinds; k += kCount) {
      go_back<T, kCount>(p, step * kTokenKinds + k, parameters, sums, dstep, lane);
    }
    store_row(p.dsteps + step * p.width, dstep, lane);
  }
  constexpr int kColumns = kNext ? 4 : 2, kColumnsAtOnce = kTurns <= 2 ? 2 : 1;
  __shared__ __align__(16) float shared[kEmbeddingWarps * kColumnsAtOnce * kTurns * kRowTurn];
  leave_column_sums<kEmbeddingWarps, kColumnsAtOnce>(
      shared, sums, kColumns, p.parts + int64_t{blockIdx.x} * kColumns * p.width, lane);
}

}  // namespace

cudaError_t launch_embedding_norm_backward(const EmbeddingNormParams& p, cudaStream_t stream) {
  if (!norm_width_fits(p.width)) return cudaErrorInvalidValue;
  if (p.steps == 0) return cudaSuccess;
  return with_row_turns(p.width, [&](auto turns) {
    const auto kernel = p.next.weight == nullptr ? norm_backward_kernel<turns(), void>
                        : p.next.storage == Storage::kBFloat16
                            ? norm_backward_kernel<turns(), bfloat16>
                            : norm_backward_kernel<turns(), float>;
    const auto blocks = static_cast<unsigned>(embedding_norm_blocks(p.steps, p.width));
    return launch_early(kernel, blocks, kThreads, 0, stream, p);
  });
}

}  // namespace dmamba::kernels
