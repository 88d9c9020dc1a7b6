// The channel mixer's passes over the hidden layer on a CUDA device, bound by memory.
//
//   bias_gelu     y = GELU(x + bias), x = GELU'(x + bias)  reads x, writes x and y
//   multiply_sum  dy = dy slope, sums[c] = sum_r dy[r][c]  reads dy and slope, writes dy
//
// x, y, dy and slope are (rows, channels), contiguous.
//
// A block is a warp wide: a lane takes 16 bytes of channels, kept for all of its rows, so that a
// bias is loaded and a sum left once. Arithmetic is fp32 whatever the storage; the sums are those
// of the products before they are rounded to it.
//
// The sums have one order on any device: a lane adds its rows, a block its warps, and a second
// launch the blocks, each thread every kSlices-th and then the threads in turn.
#include <algorithm>

#include "kernels/common/alignment.h"
#include "kernels/common/gelu.cuh"
#include "kernels/common/launch.cuh"
#include "kernels/common/storage.cuh"
#include "kernels/elementwise/launch.h"

namespace dmamba::kernels {
namespace {

constexpr int kWarp = 32, kWarps = 8, kThreads = kWarp * kWarps;
constexpr dim3 kBlock(kWarp, kWarps);
constexpr int kRowsInFlight = 4;  // of a warp of multiply_sum
/// Of multiply_sum at most; longer columns have longer row blocks.
constexpr int64_t kMaxRowBlocks = 512;
constexpr int kColumns = 32, kSlices = 16, kPartsInFlight = 8;  // of a block of the second launch

/// Channels of a lane.
template <class T>
constexpr int kLaneChannels = 16 / static_cast<int>(sizeof(T));

constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

/// The lane's first channel; `count`: how many of its channels exist.
template <class T>
__device__ int64_t lane_channel(int64_t channels, int& count) {
  constexpr int kWidth = kLaneChannels<T>;
  const int64_t channel = (int64_t{blockIdx.x} * kWarp + threadIdx.x) * kWidth;
  const int64_t left = channels - channel;
  count = static_cast<int>(left < 0 ? 0 : left < kWidth ? left : kWidth);
  return channel;
}

/// Stores a lane's channels (at least one).
template <bool kWide, class T, int kWidth>
__device__ __forceinline__ void store_lane(T* p, const float (&in)[kWidth], int count) {
  if constexpr (kWide) {
    store_whole<T, kWidth>(p, in);
  } else {
    store_some<T, kWidth>(p, in, count, false);
  }
}

/// kWide: rows and bias are aligned, and channels a multiple of a lane's.
template <class T, bool kWide>
__global__ void __launch_bounds__(kThreads)
    bias_gelu_kernel(T* x, const float* bias, T* y, int64_t rows, int64_t channels) {
  wait_for_stream();
  constexpr int kWidth = kLaneChannels<T>;
  int count;
  const int64_t channel = lane_channel<T>(channels, count);
  if (count == 0) return;
  float shift[kWidth];
  fetch<kWidth, kWide>(bias + channel, count, kWide).get(shift);
  const int64_t stride = int64_t{gridDim.y} * kWarps;
  for (int64_t r = int64_t{blockIdx.y} * kWarps + threadIdx.y; r < rows; r += stride) {
    const int64_t i = r * channels + channel;
    float value[kWidth], slope[kWidth];
    fetch<kWidth, kWide>(x + i, count, kWide).get(value);
#pragma unroll
    for (int e = 0; e < kWidth; ++e) {
      const float2 gelu = gelu_with_slope(value[e] + shift[e]);
      value[e] = gelu.x;
      slope[e] = gelu.y;
    }
    store_lane<kWide>(y + i, value, count);
    store_lane<kWide>(x + i, slope, count);
  }
}

/// Adds the sums of a block's warps in order; part: (channels,), this block's.
template <int kWidth>
__device__ void add_warps(const float (&sum)[kWidth], float* part, int64_t channels) {
  constexpr int kBlockChannels = kWarp * kWidth;
  __shared__ __align__(16) float shared[kWarps][kBlockChannels];
#pragma unroll
  for (int e = 0; e < kWidth; ++e) shared[threadIdx.y][threadIdx.x * kWidth + e] = sum[e];
  __syncthreads();
  const int c = static_cast<int>(threadIdx.y * kWarp + threadIdx.x);
  const int64_t channel = int64_t{blockIdx.x} * kBlockChannels + c;
  if (c >= kBlockChannels || channel >= channels) return;
  float total = shared[0][c];
#pragma unroll
  for (int w = 1; w < kWarps; ++w) total += shared[w][c];
  part[channel] = total;
}

/// parts: (gridDim.y, channels). A block has `block_rows` rows, its warps every kWarps-th. Without
/// __restrict__, which would let the compiler move loads behind the stores to save registers.
template <class T, bool kWide>
__global__ void __launch_bounds__(kThreads, kWide ? 4 : 2)
    multiply_sum_kernel(T* dy, const T* slope, float* parts, int64_t rows, int64_t channels,
                        int64_t block_rows) {
  wait_for_stream();
  constexpr int kWidth = kLaneChannels<T>;
  int count;
  const int64_t channel = lane_channel<T>(channels, count);
  const int64_t first = blockIdx.y * block_rows;
  const int64_t last = first + block_rows < rows ? first + block_rows : rows;
  float sum[kWidth] = {};
  for (int64_t r = first + threadIdx.y; r < last; r += kRowsInFlight * kWarps) {
    const int64_t i = r * channels + channel, step = kWarps * channels;
    Pack<T, kWidth> gradients[kRowsInFlight], slopes[kRowsInFlight];
    int counts[kRowsInFlight];
#pragma unroll
    for (int k = 0; k < kRowsInFlight; ++k) {
      counts[k] = r + k * kWarps < last ? count : 0;
      gradients[k] = fetch<kWidth, kWide>(dy + i + k * step, counts[k], kWide);
      slopes[k] = fetch<kWidth, kWide>(slope + i + k * step, counts[k], kWide);
    }
#pragma unroll
    for (int k = 0; k < kRowsInFlight; ++k) {
      float product[kWidth], factor[kWidth];
      gradients[k].get(product);
      slopes[k].get(factor);
#pragma unroll
      for (int e = 0; e < kWidth; ++e) {
        product[e] *= factor[e];
        sum[e] += product[e];
      }
      store_some<T, kWidth>(dy + i + k * step, product, counts[k], kWide);
    }
  }
  add_warps<kWidth>(sum, parts + blockIdx.y * channels, channels);
}

/// sums[c] = sum of parts[.][c], parts: (count, channels).
__global__ void __launch_bounds__(kColumns* kSlices)
    add_parts_kernel(const float* __restrict__ parts, float* __restrict__ sums, int64_t count,
                     int64_t channels) {
  __shared__ float slices[kSlices][kColumns];
  const unsigned column = threadIdx.x, slice = threadIdx.y;
  const int64_t channel = int64_t{blockIdx.x} * kColumns + column;
  float sum = 0.0F;
  if (channel < channels) {
    for (int64_t part = slice; part < count; part += kPartsInFlight * kSlices) {
      float values[kPartsInFlight];
#pragma unroll
      for (int k = 0; k < kPartsInFlight; ++k) {
        const int64_t next = part + k * kSlices;
        values[k] = next < count ? parts[next * channels + channel] : 0.0F;
      }
#pragma unroll
      for (int k = 0; k < kPartsInFlight; ++k) sum += values[k];
    }
  }
  slices[slice][column] = sum;
  __syncthreads();
  if (slice != 0 || channel >= channels) return;
#pragma unroll
  for (int s = 1; s < kSlices; ++s) sum += slices[s][column];
  sums[channel] = sum;
}

/// Rows of a block of multiply_sum: from sizes alone, so that the order is the same on any device.
int64_t block_rows(int64_t rows) {
  constexpr int64_t kUnit = kRowsInFlight * kWarps;
  return std::max<int64_t>(1, divide_up(rows, kMaxRowBlocks * kUnit)) * kUnit;
}

template <class T>
dim3 grid_of(int64_t channels, int64_t row_blocks) {
  return {static_cast<unsigned>(divide_up(channels, kWarp * kLaneChannels<T>)),
          static_cast<unsigned>(row_blocks)};
}

template <class T>
cudaError_t launch_stored(const BiasGeluParams& p, cudaStream_t stream) {
  constexpr int kWidth = kLaneChannels<T>;
  constexpr int64_t kMaxBlocks = 32768;  // beyond, a block takes several turns
  const bool wide = p.channels % kWidth == 0 && aligned(p.x, 16) && aligned(p.out, 16) &&
                    aligned(p.bias, kWidth * sizeof(float));
  const auto kernel = wide ? bias_gelu_kernel<T, true> : bias_gelu_kernel<T, false>;
  const dim3 grid = grid_of<T>(p.channels, std::min(divide_up(p.rows, 2 * kWarps), kMaxBlocks));
  return launch_early(kernel, grid, kBlock, 0, stream, static_cast<T*>(p.x),
                      static_cast<const float*>(p.bias), static_cast<T*>(p.out), p.rows,
                      p.channels);
}

template <class T>
cudaError_t launch_stored(const MultiplySumParams& p, float* parts, cudaStream_t stream) {
  const bool wide = p.channels % kLaneChannels<T> == 0 && aligned(p.dy, 16) && aligned(p.slope, 16);
  const auto kernel = wide ? multiply_sum_kernel<T, true> : multiply_sum_kernel<T, false>;
  return launch_early(kernel, grid_of<T>(p.channels, multiply_sum_parts(p)), kBlock, 0, stream,
                      static_cast<T*>(p.dy), static_cast<const T*>(p.slope), parts, p.rows,
                      p.channels, block_rows(p.rows));
}

}  // namespace

cudaError_t launch_bias_gelu(const BiasGeluParams& p, cudaStream_t stream) {
  if (p.storage == Storage::kFloat64) return cudaErrorInvalidValue;
  if (p.rows == 0 || p.channels == 0) return cudaSuccess;
  return p.storage == Storage::kBFloat16 ? launch_stored<bfloat16>(p, stream)
                                         : launch_stored<float>(p, stream);
}

int64_t multiply_sum_parts(const MultiplySumParams& p) {
  return p.rows > 0 ? divide_up(p.rows, block_rows(p.rows)) : 0;
}

cudaError_t launch_multiply_sum(const MultiplySumParams& p, float* parts, cudaStream_t stream) {
  if (p.storage == Storage::kFloat64) return cudaErrorInvalidValue;
  if (p.channels == 0 || p.rows == 0) return cudaSuccess;
  return p.storage == Storage::kBFloat16 ? launch_stored<bfloat16>(p, parts, stream)
                                         : launch_stored<float>(p, parts, stream);
}

cudaError_t launch_sum_parts(const float* parts, float* sums, int64_t count, int64_t columns,
                             cudaStream_t stream) {
  if (columns == 0) return cudaSuccess;
  const auto blocks = static_cast<unsigned>(divide_up(columns, kColumns));
  return launch_kernel(add_parts_kernel, blocks, dim3(kColumns, kSlices), 0, stream, parts, sums,
                       count, columns);
}

}  // namespace dmamba::kernels
