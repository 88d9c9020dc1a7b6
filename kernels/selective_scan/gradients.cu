// One launch sums partial gradients: dA, dD, ddelta_bias over (batch, chunk), and dB and dC over
// the channel blocks, unless somebody else does.
#include "kernels/common/launch.cuh"
#include "kernels/selective_scan/gradients.cuh"
#include "kernels/selective_scan/launch_common.cuh"

namespace dmamba::kernels {
namespace {

constexpr int kColumns = 32, kSlices = 8;  // of a block of 256 threads

/// out[i] = sum over parts of in[part][i]: a column is summed by kSlices threads, each every
/// kSlices-th part, then in order.
struct ColumnSums {
  const float* in;
  float* out;
  int64_t columns;
};

struct GradientSums {
  int64_t parts;
  ColumnSums sums[3];
  int64_t first_block[4];  // of each of the three and of dB, dC
  const float* dBdC;       // (blocks, tokens, 2, d_state)
  Sequence dB, dC;         // (batch, L, d_state)
  bool vectors;            // four states of each are one access
  int channel_blocks, d_state;
  uint32_t length;
  int64_t tokens;
};

/// States of a thread that sums dB and dC; threads that share a token's, `width` states each, and
/// tokens of a block.
__host__ __device__ constexpr int row_width(int d_state) { return d_state % 4 == 0 ? 4 : 1; }
__host__ __device__ constexpr int row_threads(int d_state, int width) {
  return 2 * d_state / width;
}
__host__ __device__ constexpr int row_tokens(int d_state, int width) {
  return 256 / row_threads(d_state, width);
}

__device__ void sum_columns(const ColumnSums& job, int64_t parts, int64_t block) {
  __shared__ float slices[kSlices][kColumns];
  const int column = static_cast<int>(threadIdx.x) % kColumns;
  const int slice = static_cast<int>(threadIdx.x) / kColumns;
  const int64_t index = block * kColumns + column;
  float sum = 0.0F;
  if (index < job.columns) {
#pragma unroll 8
    for (int64_t part = slice; part < parts; part += kSlices) {
      sum += job.in[part * job.columns + index];
    }
  }
  slices[slice][column] = sum;
  __syncthreads();
  if (slice == 0 && index < job.columns) {
#pragma unroll
    for (int s = 1; s < kSlices; ++s) sum += slices[s][column];
    job.out[index] = sum;
  }
}

template <class T, int kWidth>
__device__ void sum_channel_blocks(const GradientSums& g, int64_t block) {
  const int threads = row_threads(g.d_state, kWidth), tokens = row_tokens(g.d_state, kWidth);
  const int row = static_cast<int>(threadIdx.x) / threads;
  const int n = (static_cast<int>(threadIdx.x) - row * threads) * kWidth;
  const int64_t token = block * tokens + row;
  if (row >= tokens || token >= g.tokens) return;
  const float* from = g.dBdC + token * 2 * g.d_state + n;
  const int64_t stride = g.tokens * 2 * g.d_state;
  float sum[kWidth] = {};
#pragma unroll 4
  for (int b = 0; b < g.channel_blocks; ++b) {
    float part[kWidth];
    load_pack<float, kWidth>(from + b * stride, part);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) sum[j] += part[j];
  }
  const bool is_dC = n >= g.d_state;
  const Sequence& to = is_dC ? g.dC : g.dB;
  const uint32_t sequence = static_cast<uint32_t>(token) / g.length;
  const uint32_t step = static_cast<uint32_t>(token) - sequence * g.length;
  store_some<T, kWidth>(static_cast<T*>(to.data) + sequence * to.batch_stride +
                            step * to.step_stride + n - (is_dC ? g.d_state : 0),
                        sum, kWidth, g.vectors);
}

template <class T>
__global__ void __launch_bounds__(256)
    sum_gradients_kernel(const __grid_constant__ GradientSums g) {
  const int64_t block = blockIdx.x;
  if (block >= g.first_block[3]) {
    if (row_width(g.d_state) == 4) return sum_channel_blocks<T, 4>(g, block - g.first_block[3]);
    return sum_channel_blocks<T, 1>(g, block - g.first_block[3]);
  }
#pragma unroll
  for (int i = 2; i >= 0; --i) {
    if (block >= g.first_block[i]) return sum_columns(g.sums[i], g.parts, block - g.first_block[i]);
  }
}

}  // namespace

cudaError_t launch_sum_gradients(const SelectiveScanBackwardParams& p, const BackwardWork& work,
                                 const SelectiveScanGradients& gradients, bool channel_blocks,
                                 cudaStream_t stream) {
  GradientSums g{};
  g.parts = p.batch * work.n_chunks;
  g.sums[0] = {work.parts.dA, gradients.dA, p.d_inner * p.d_state};
  g.sums[1] = {work.parts.dD, gradients.dD, gradients.dD != nullptr ? p.d_inner : 0};
  g.sums[2] = {work.parts.ddelta_bias, gradients.ddelta_bias,
               gradients.ddelta_bias != nullptr ? p.d_inner : 0};
  int64_t blocks = 0;
  for (int i = 0; i < 3; ++i) {
    g.first_block[i] = blocks;
    blocks += (g.sums[i].columns + kColumns - 1) / kColumns;
  }
  g.first_block[3] = blocks;
  g.dBdC = work.parts.dBdC;
  g.dB = gradients.dB;
  g.dC = gradients.dC;
  g.channel_blocks = work.channel_blocks;
  g.d_state = static_cast<int>(p.d_state);
  const int width = row_width(g.d_state);
  const int64_t item = storage_bytes(p.storage);
  g.vectors = width == 4 && rows_aligned(gradients.dB, width, item) &&
              rows_aligned(gradients.dC, width, item);
  g.length = static_cast<uint32_t>(p.length);
  g.tokens = p.batch * p.length;
  if (channel_blocks && work.channel_blocks > 1) {
    const int64_t tokens = row_tokens(g.d_state, width);
    blocks += (g.tokens + tokens - 1) / tokens;
  }
  const auto grid = static_cast<unsigned>(blocks);
  return p.storage == Storage::kBFloat16
             ? launch_kernel(sum_gradients_kernel<bfloat16>, grid, 256, 0, stream, g)
             : launch_kernel(sum_gradients_kernel<float>, grid, 256, 0, stream, g);
}

}  // namespace dmamba::kernels
