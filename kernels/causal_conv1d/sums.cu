// Adds up what the blocks of the convolution's backward pass leave:
//
//   dweight[channel][tap] = sum over row blocks of partial[row_block][tap][channel]
//
// and dbias likewise, as if it were one more tap.
//
// Reads (width + 1) d_inner floats a row block, from the cache that the blocks have just written.
#include "kernels/causal_conv1d/sums.cuh"
#include "kernels/common/launch.cuh"

namespace dmamba::kernels {
namespace {

constexpr int kColumns = 32, kSlices = 16;
/// Loads of a thread. Explicitly so: of a loop that the compiler unrolls, the rest goes one by one.
constexpr int kInFlight = 8;

/// A column is summed by kSlices threads, each every kSlices-th row block, then in order.
__global__ void __launch_bounds__(kColumns* kSlices)
    causal_conv1d_sums_kernel(const ConvPartialSums partial,
                              const CausalConv1dGradients gradients) {
  __shared__ float slices[kSlices][kColumns];
  const int column = static_cast<int>(threadIdx.x) % kColumns;
  const int slice = static_cast<int>(threadIdx.x) / kColumns;
  const int64_t columns = (partial.width + 1) * partial.d_inner;
  const int64_t index = int64_t{blockIdx.x} * kColumns + column;
  float sum = 0.0F;
  if (index < columns) {
    for (int64_t row = slice; row < partial.row_blocks; row += kInFlight * kSlices) {
      float values[kInFlight];
#pragma unroll
      for (int i = 0; i < kInFlight; ++i) {
        const int64_t r = row + i * kSlices;
        values[i] = r < partial.row_blocks ? partial.data[r * columns + index] : 0.0F;
      }
#pragma unroll
      for (int i = 0; i < kInFlight; ++i) sum += values[i];
    }
  }
  slices[slice][column] = sum;
  __syncthreads();
  if (slice != 0 || index >= columns) return;
#pragma unroll
  for (int s = 1; s < kSlices; ++s) sum += slices[s][column];
  const int64_t tap = index / partial.d_inner, channel = index % partial.d_inner;
  if (tap < partial.width) {
    gradients.dweight[channel * partial.width + tap] = sum;
  } else if (gradients.dbias != nullptr) {
    gradients.dbias[channel] = sum;
  }
}

}  // namespace

cudaError_t launch_conv_sums(const ConvPartialSums& partial, const CausalConv1dGradients& gradients,
                             cudaStream_t stream) {
  const int64_t columns = (partial.width + 1) * partial.d_inner;
  const int64_t blocks = (columns + kColumns - 1) / kColumns;
  return launch_kernel(causal_conv1d_sums_kernel, static_cast<unsigned>(blocks), kColumns * kSlices,
                       0, stream, partial, gradients);
}

}  // namespace dmamba::kernels
