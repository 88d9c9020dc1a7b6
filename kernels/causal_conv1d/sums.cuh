// The sums of the weight's and the bias's gradients over rows: in a block, then over blocks. Every
// sum runs in an order that the sizes alone decide.
#pragma once

#include "kernels/causal_conv1d/walk.cuh"

namespace dmamba::kernels {

/// What the blocks leave: (row_blocks, width + 1, d_inner), the taps in order, then the bias.
struct ConvPartialSums {
  const float* data;
  int64_t row_blocks, d_inner, width;
};

cudaError_t launch_conv_sums(const ConvPartialSums& partial, const CausalConv1dGradients& gradients,
                             cudaStream_t stream);

/// Adds up the rows of a block and stores the sums. All threads call it; those without work bring
/// zeros.
template <class Shape>
__device__ __forceinline__ void sum_rows(const CausalConv1dParams& p, const ConvGrid& g,
                                         const ConvPlace& at,
                                         const float (&sums)[Shape::kWidth + 1][Shape::kPack],
                                         float* __restrict__ partial) {
  constexpr int kPack = Shape::kPack, kSums = Shape::kWidth + 1;
  // A pad of 8 floats: the four channels of 8 neighbouring packs lie in 32 different banks.
  __shared__ float shared[kSums * kPack][kConvThreads + 8];
#pragma unroll
  for (int k = 0; k < kSums; ++k) {
#pragma unroll
    for (int c = 0; c < kPack; ++c) shared[k * kPack + c][threadIdx.x] = sums[k][c];
  }
  __syncthreads();
  static_assert(kPack == 2 || kPack == 4);
  const int lanes = 1 << g.log_lanes, log_channels = g.log_lanes + kPack / 2;
  const unsigned row_block = blockIdx.x / static_cast<unsigned>(g.pack_blocks);
  const int first_channel = at.channel - at.lane * kPack;
  const int first_tap = Shape::kWidth - static_cast<int>(p.width);
  for (int i = static_cast<int>(threadIdx.x); i < (kSums - first_tap) << log_channels;
       i += kConvThreads) {
    const int tap = i >> log_channels, channel = i & ((1 << log_channels) - 1);
    const float* column = &shared[(first_tap + tap) * kPack + channel % kPack][channel / kPack];
    float sum = column[0];
    for (int row = lanes; row < kConvThreads; row += lanes) sum += column[row];
    if (first_channel + channel < p.d_inner) {
      partial[(row_block * (p.width + 1) + tap) * p.d_inner + first_channel + channel] = sum;
    }
  }
}

}  // namespace dmamba::kernels
