// The residual stream on a CUDA device: what lies between two mixers is one launch each way.
//
//   forward   sum = residual + dropout(branch + bias), normed = LayerNorm(sum)
//   backward  d residual = d sum + LayerNorm'(d normed), d branch = dropout(d residual), and the
//             column sums for the parameters, a part a block
//
// A warp has a row in registers; bytes are read and written once. Floor: 16 (forward) or 20
// (backward) bytes a number in fp32 storage at the device's copy bandwidth; at the sizes of RL the
// latency of one round of loads and two rounds of shuffles.
//
// Sums have one order on any device: a lane over its rows, a block over its warps, sum_parts over
// the blocks.
#include <type_traits>

#include "kernels/common/launch.cuh"
#include "kernels/normalization/launch.h"
#include "kernels/normalization/row.cuh"

namespace dmamba::kernels {
namespace {

constexpr int kThreads = kNormWarps * 32;

template <int kTurns, class T, bool kBranch>
__global__ void __launch_bounds__(kThreads)
    add_norm_kernel(const __grid_constant__ AddNormParams p) {
  wait_for_stream();
  const Lane lane{static_cast<int>(threadIdx.x) % 32, static_cast<int>(p.width)};
  const int64_t row = int64_t{blockIdx.x} * kNormWarps + threadIdx.x / 32;
  if (row >= p.rows) return;
  const int64_t at = row * p.width;
  Row<kTurns> sum = load_row<kTurns>(p.residual + at, lane);
  if (kBranch) {
    Row<kTurns> branch = load_row<kTurns>(static_cast<const T*>(p.branch) + at, lane);
    if (p.bias != nullptr) {
      const Row<kTurns> bias = load_row<kTurns>(p.bias, lane);
#pragma unroll
      for (int i = 0; i < kTurns; ++i) {
#pragma unroll
        for (int e = 0; e < kRowVector; ++e) branch.v[i][e] += bias.v[i][e];
      }
    }
    if (p.dropout.key != nullptr) {
      apply_dropout(branch, p.dropout, static_cast<uint64_t>(*p.dropout.key), row, lane);
    }
#pragma unroll
    for (int i = 0; i < kTurns; ++i) {
#pragma unroll
      for (int e = 0; e < kRowVector; ++e) sum.v[i][e] += branch.v[i][e];
    }
    store_row(p.sum + at, sum, lane);
  }
  const RowStatistics s = statistics_of(sum, p.epsilon, lane);
  if (lane.lane == 0) store_pack<float, 2>(p.statistics + 2 * row, {s.mean, s.rstd});
  store_row(static_cast<T*>(p.normed) + at, normalise(sum, s, p.weight, p.norm_bias, lane), lane);
}

template <int kTurns, class T>
__global__ void __launch_bounds__(kThreads)
    add_norm_backward_kernel(const __grid_constant__ AddNormBackwardParams p) {
  wait_for_stream();
  const Lane lane{static_cast<int>(threadIdx.x) % 32, static_cast<int>(p.width)};
  const uint64_t key = p.dropout.key != nullptr ? static_cast<uint64_t>(*p.dropout.key) : 0;
  const Row<kTurns> weight = load_row<kTurns>(p.weight, lane);
  Row<kTurns> sums[3] = {};  // of the weight's gradient, the norm's bias's, the branch's bias's
  int64_t row = int64_t{blockIdx.x} * kNormWarps + threadIdx.x / 32;
  for (; row < p.rows; row += int64_t{gridDim.x} * kNormWarps) {
    const int64_t at = row * p.width;
    const Row<kTurns> dy = load_row<kTurns>(static_cast<const T*>(p.dnormed) + at, lane);
    const Row<kTurns> x = load_row<kTurns>(p.sum + at, lane);
    Row<kTurns> residual = {};
    if (p.dsum_in != nullptr) residual = load_row<kTurns>(p.dsum_in + at, lane);
    float s[2];
    load_pack<float, 2>(p.statistics + 2 * row, s);
    Row<kTurns> dx = norm_gradient(dy, x, weight, {s[0], s[1]}, sums[0], sums[1], lane);
#pragma unroll
    for (int i = 0; i < kTurns; ++i) {
#pragma unroll
      for (int e = 0; e < kRowVector; ++e) dx.v[i][e] += residual.v[i][e];
    }
    store_row(p.dresidual + at, dx, lane);
    if (p.dbranch == nullptr) continue;
    if (p.dropout.key != nullptr) apply_dropout(dx, p.dropout, key, row, lane);
    store_row(static_cast<T*>(p.dbranch) + at, dx, lane);
#pragma unroll
    for (int i = 0; i < kTurns; ++i) {
#pragma unroll
      for (int e = 0; e < kRowVector; ++e) sums[2].v[i][e] += dx.v[i][e];
    }
  }
  const int columns = p.has_bias ? 3 : 2;
  __shared__ __align__(16) float shared[kNormWarps * kTurns * kRowTurn];
  leave_column_sums<kNormWarps>(shared, sums, columns,
                                p.parts + int64_t{blockIdx.x} * columns * p.width, lane);
}

template <int kTurns>
__global__ void __launch_bounds__(kThreads)
    norm_dropout_backward_kernel(const __grid_constant__ NormDropoutBackwardParams p) {
  wait_for_stream();
  const Lane lane{static_cast<int>(threadIdx.x) % 32, static_cast<int>(p.width)};
  const uint64_t key = p.dropout.key != nullptr ? static_cast<uint64_t>(*p.dropout.key) : 0;
  const Row<kTurns> weight = load_row<kTurns>(p.weight, lane);
  Row<kTurns> sums[2] = {};
  int64_t row = int64_t{blockIdx.x} * kNormWarps + threadIdx.x / 32;
  for (; row < p.rows; row += int64_t{gridDim.x} * kNormWarps) {
    const int64_t at = row * p.width;
    Row<kTurns> dy = load_row<kTurns>(p.dout + at, lane);
    const Row<kTurns> x = load_row<kTurns>(p.x + at, lane);
    float s[2];
    load_pack<float, 2>(p.statistics + 2 * row, s);
    if (p.dropout.key != nullptr) apply_dropout(dy, p.dropout, key, row, lane);
    store_row(p.dx + at, norm_gradient(dy, x, weight, {s[0], s[1]}, sums[0], sums[1], lane), lane);
  }
  __shared__ __align__(16) float shared[kNormWarps * kTurns * kRowTurn];
  leave_column_sums<kNormWarps>(shared, sums, 2, p.parts + int64_t{blockIdx.x} * 2 * p.width, lane);
}

template <class T>
cudaError_t launch_stored(const AddNormParams& p, cudaStream_t stream) {
  return with_row_turns(p.width, [&](auto turns) {
    const auto blocks = static_cast<unsigned>((p.rows + kNormWarps - 1) / kNormWarps);
    const auto kernel = p.branch != nullptr ? add_norm_kernel<turns(), T, true>
                                            : add_norm_kernel<turns(), T, false>;
    return launch_early(kernel, blocks, kThreads, 0, stream, p);
  });
}

template <class T>
cudaError_t launch_stored(const AddNormBackwardParams& p, cudaStream_t stream) {
  return with_row_turns(p.width, [&](auto turns) {
    const auto blocks = static_cast<unsigned>(norm_backward_blocks(p.rows));
    return launch_early(add_norm_backward_kernel<turns(), T>, blocks, kThreads, 0, stream, p);
  });
}

template <class Params>
cudaError_t launch_any(const Params& p, cudaStream_t stream) {
  if (!norm_width_fits(p.width) || p.storage == Storage::kFloat64) return cudaErrorInvalidValue;
  if (p.rows == 0) return cudaSuccess;
  return p.storage == Storage::kBFloat16 ? launch_stored<bfloat16>(p, stream)
                                         : launch_stored<float>(p, stream);
}

}  // namespace

cudaError_t launch_add_norm(const AddNormParams& p, cudaStream_t stream) {
  return launch_any(p, stream);
}

cudaError_t launch_add_norm_backward(const AddNormBackwardParams& p, cudaStream_t stream) {
  return launch_any(p, stream);
}

cudaError_t launch_norm_dropout_backward(const NormDropoutBackwardParams& p, cudaStream_t stream) {
  if (!norm_width_fits(p.width)) return cudaErrorInvalidValue;
  if (p.rows == 0) return cudaSuccess;
  return with_row_turns(p.width, [&](auto turns) {
    const auto blocks = static_cast<unsigned>(norm_backward_blocks(p.rows));
    return launch_early(norm_dropout_backward_kernel<turns()>, blocks, kThreads, 0, stream, p);
  });
}

}  // namespace dmamba::kernels
