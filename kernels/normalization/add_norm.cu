// The residual stream on a CUDA device: what lies between two mixers is one launch each way.
//
//   forward   sum = residual + dropout(branch + bias), normed = LayerNorm(sum)
//   backward  d residual = d sum + LayerNorm'(d normed), d branch = dropout(d residual), and the
//             column sums for the parameters, a part a block
//
// A warp has a row in registers, two where they are narrow (forward: and many), and all blocks of
// the backward pass fit onto the device at once; bytes are read and written once. Floor: 16
// (forward) or 20 (backward) bytes a number in fp32 storage at the device's copy bandwidth; at the
// sizes of RL the latency of one round of loads and one or two rounds of shuffles.
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

template <int kTurns, class T, int kCount, bool kBranch>
__global__ void __launch_bounds__(kThreads)
    add_norm_kernel(const __grid_constant__ AddNormParams p) {
  wait_for_stream();
  const Lane lane{static_cast<int>(threadIdx.x) % 32, static_cast<int>(p.width)};
  const int64_t first = (int64_t{blockIdx.x} * kNormWarps + threadIdx.x / 32) * kCount;
  if (first >= p.rows) return;
  const auto row_of = [&](int r) { return min(first + r, p.rows - 1); };  // one that may be read
  Row<kTurns> sum[kCount], branch[kCount];
#pragma unroll
  for (int r = 0; r < kCount; ++r) {
    sum[r] = load_row<kTurns>(p.residual + row_of(r) * p.width, lane);
    if (kBranch) {
      branch[r] = load_row<kTurns>(static_cast<const T*>(p.branch) + row_of(r) * p.width, lane);
    }
  }
  // Early, as loads don't overtake stores that could be to the same place.
  const Row<kTurns> weight = load_row<kTurns>(p.weight, lane);
  const Row<kTurns> norm_bias = load_row<kTurns>(p.norm_bias, lane);
  if (kBranch) {
    Row<kTurns> bias{};
    if (p.bias != nullptr) bias = load_row<kTurns>(p.bias, lane);
    const uint64_t key = p.dropout.key != nullptr ? static_cast<uint64_t>(*p.dropout.key) : 0;
#pragma unroll
    for (int r = 0; r < kCount; ++r) {
      add_row(branch[r], bias);
      if (p.dropout.key != nullptr) apply_dropout(branch[r], p.dropout, key, first + r, lane);
      add_row(sum[r], branch[r]);
      if (first + r < p.rows) store_row(p.sum + (first + r) * p.width, sum[r], lane);
    }
  }
  RowStatistics statistics[kCount];
  statistics_of(sum, p.epsilon, lane, statistics);
#pragma unroll
  for (int r = 0; r < kCount; ++r) {
    if (first + r >= p.rows) break;
    if (lane.lane == 0) store_statistics(p.statistics, first + r, statistics[r]);
    store_row(static_cast<T*>(p.normed) + (first + r) * p.width,
              normalise(sum[r], statistics[r], weight, norm_bias), lane);
  }
}

/// Rows of narrow ones that a warp of the forward pass takes at once, where they are many.
constexpr int kRowsAtOnce = 2;
constexpr int64_t kManyRows = 8448;

/// Column sums go through shared memory together where that is small.
template <int kTurns>
constexpr int kColumnsAtOnce = kTurns <= 2 ? 3 : 1;

/// Blocks that a multiprocessor is to hold: with norm_backward_blocks all of them at once.
template <int kTurns>
constexpr int kResident = kTurns == 1   ? 3
                          : kTurns == 2 ? 2
                                        : 1;

template <int kTurns, class T, int kCount>
__global__ void __launch_bounds__(kThreads, kResident<kTurns>)
    add_norm_backward_kernel(const __grid_constant__ AddNormBackwardParams p) {
  wait_for_stream();
  const Lane lane{static_cast<int>(threadIdx.x) % 32, static_cast<int>(p.width)};
  const Row<kTurns> weight = load_row<kTurns>(p.weight, lane);
  Row<kTurns> sums[3] = {};  // of the weight's gradient, the norm's bias's, the branch's bias's
  int64_t first = (int64_t{blockIdx.x} * kNormWarps + threadIdx.x / 32) * kCount;
  for (; first < p.rows; first += int64_t{gridDim.x} * kNormWarps * kCount) {
    Row<kTurns> dy[kCount], x[kCount], residual[kCount], dx[kCount];
    RowStatistics statistics[kCount];
    // All loads first, without branches, in which they would be waited for; the key in the loop,
    // or what is worked out of it before would wait for it.
    const uint64_t key = p.dropout.key != nullptr ? static_cast<uint64_t>(*p.dropout.key) : 0;
#pragma unroll
    for (int r = 0; r < kCount; ++r) {
      const int64_t row = min(first + r, p.rows - 1), at = row * p.width;
      dy[r] = load_row<kTurns>(static_cast<const T*>(p.dnormed) + at, lane);
      x[r] = load_row<kTurns>(p.sum + at, lane);
      residual[r] = load_row<kTurns>((p.dsum_in != nullptr ? p.dsum_in : p.sum) + at, lane);
      statistics[r] = load_statistics(p.statistics, row);
    }
#pragma unroll
    for (int r = 1; r < kCount; ++r) {
      if (first + r >= p.rows) dy[r] = {};  // that row isn't there, and adds to no sum
    }
    norm_gradients(dy, x, statistics, weight, dx, sums[0], sums[1], lane);
#pragma unroll
    for (int r = 0; r < kCount; ++r) {
      const int64_t at = (first + r) * p.width;
      if (first + r >= p.rows) break;
      if (p.dsum_in != nullptr) add_row(dx[r], residual[r]);
      store_row(p.dresidual + at, dx[r], lane);
      if (p.dbranch == nullptr) continue;
      if (p.dropout.key != nullptr) apply_dropout(dx[r], p.dropout, key, first + r, lane);
      store_row(static_cast<T*>(p.dbranch) + at, dx[r], lane);
      add_row(sums[2], dx[r]);
    }
  }
  const int columns = p.has_bias ? 3 : 2;
  constexpr int kAtOnce = kColumnsAtOnce<kTurns>;
  __shared__ __align__(16) float shared[kNormWarps * kAtOnce * kTurns * kRowTurn];
  leave_column_sums<kNormWarps, kAtOnce>(shared, sums, columns,
                                         p.parts + int64_t{blockIdx.x} * columns * p.width, lane);
}

template <class T>
cudaError_t launch_stored(const AddNormParams& p, cudaStream_t stream) {
  return with_row_turns(p.width, [&](auto turns) {
    const auto launch = [&]<int kCount>() {
      constexpr int64_t kEach = kNormWarps * kCount;
      const auto blocks = static_cast<unsigned>((p.rows + kEach - 1) / kEach);
      const auto kernel = p.branch != nullptr ? add_norm_kernel<turns(), T, kCount, true>
                                              : add_norm_kernel<turns(), T, kCount, false>;
      return launch_early(kernel, blocks, kThreads, 0, stream, p);
    };
    if constexpr (turns() <= 2) {
      if (p.rows >= kManyRows) return launch.template operator()<kRowsAtOnce>();
    }
    return launch.template operator()<1>();
  });
}

template <class T>
cudaError_t launch_stored(const AddNormBackwardParams& p, cudaStream_t stream) {
  return with_row_turns(p.width, [&](auto turns) {
    constexpr int kCount = norm_rows_at_once(turns() * kRowTurn);
    const auto blocks = static_cast<unsigned>(norm_backward_blocks(p.rows, p.width));
    return launch_early(add_norm_backward_kernel<turns(), T, kCount>, blocks, kThreads, 0, stream,
                        p);
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

}  // namespace dmamba::kernels
