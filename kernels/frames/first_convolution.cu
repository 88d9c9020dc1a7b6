// Strips of bytes to the first activations: conversion, convolution, bias, ReLU and folding in one
// launch, where only bytes are read and only folded activations are written.
//
// Work: 13.1 MFLOP a stack on the tensor cores, 25.6 KB written; both take about the same time, so
// neither conversion nor reading may cost much. A block walks along a strip with the last four
// frames in shared memory: a frame is converted once for the four stacks it is part of. Four warps,
// one a scheduler (five would share the 25 tiles of 16 pixels evenly, and leave one scheduler twice
// the work), hold all weights in 128 registers each, so that shared memory delivers the pixels
// alone: a load of 16 x 16 of them feeds four products. A warp's columns are permuted so that a
// lane ends with eight neighbouring channels.
#include "kernels/common/launch.cuh"
#include "kernels/frames/first_convolution.cuh"

namespace dmamba::kernels {
namespace {

constexpr int kWarps = 4, kThreads = kWarps * 32;
constexpr int kColumnTiles = kOutChannels / 8;

/// The channel of column n of column tile j.
__device__ int channel_of(int j, int n) { return n / 2 * 8 + j * 2 + n % 2; }

__global__ void __launch_bounds__(kThreads, 2)
    first_convolution_kernel(const __grid_constant__ FirstConvolutionParams p, int64_t chunks) {
  FrameRing& ring = *dynamic_shared<FrameRing>();
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  uint32_t weights[kBlocks][kColumnTiles][2];
  const auto* from = static_cast<const bfloat16*>(p.weight);
#pragma unroll
  for (int j = 0; j < kColumnTiles; ++j) {
    const bfloat16* row = from + channel_of(j, lane / 4) * kBlocks * 16 + lane % 4 * 2;
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
      weights[b][j][0] = *reinterpret_cast<const uint32_t*>(row + b * 16);
      weights[b][j][1] = *reinterpret_cast<const uint32_t*>(row + b * 16 + 8);
    }
  }
  const int first_channel = lane % 4 * 8;
  FrameInFlight<kThreads> next;
  for (int64_t index = blockIdx.x; index < chunks; index += gridDim.x) {
    const Chunk chunk = chunk_of(p.strips, p.steps, index);
    __syncthreads();
    begin_chunk(chunk.frames, ring, next);
    for (int step = 0; step < chunk.steps; ++step) {
      const int newest = step + kFrameStack - 1;
      next.store(ring.pixels[newest % kFrameStack]);
      if (step + 1 < chunk.steps) next.fetch(chunk.frames + (newest + 1) * kFrameBytes);
      __syncthreads();
      auto* out = static_cast<bfloat16*>(p.out) + (chunk.image + step) * kPixels * kOutChannels;
      for (int tile = warp; tile < kTiles; tile += kWarps) {
        float sums[kColumnTiles][4];
#pragma unroll
        for (int j = 0; j < kColumnTiles; ++j) {
          const float2 bias = *reinterpret_cast<const float2*>(p.bias + first_channel + 2 * j);
          sums[j][0] = sums[j][2] = bias.x;
          sums[j][1] = sums[j][3] = bias.y;
        }
        // Lanes 0-15 name the tile's rows in the upper halves of the squares, 16-31 in the lower.
        const int offset =
            (lane / 16 * kFrameSquares + square_of(tile * kTileRows + lane % 16)) * 8;
        const auto load = [&](uint32_t(&pixels)[4], int block) {
          const bfloat16* frame = &ring.pixels[(step + block / 4) % kFrameStack][0][0][0];
          load_tiles(pixels, frame + offset + (block % 4 / 2 * kSquares + block % 2) * 8);
        };
        uint32_t pixels[2][4];  // the next block's are on their way
        load(pixels[0], 0);
#pragma unroll
        for (int block = 0; block < kBlocks; ++block) {
          if (block + 1 < kBlocks) load(pixels[(block + 1) % 2], block + 1);
#pragma unroll
          for (int j = 0; j < kColumnTiles; ++j) {
            multiply_add(sums[j], pixels[block % 2], weights[block][j][0], weights[block][j][1]);
          }
        }
#pragma unroll
        for (int row = 0; row < 2; ++row) {
          float values[8];
#pragma unroll
          for (int j = 0; j < kColumnTiles; ++j) {
            values[2 * j] = relu(sums[j][2 * row]);
            values[2 * j + 1] = relu(sums[j][2 * row + 1]);
          }
          const int pixel = tile * kTileRows + lane / 4 + 8 * row;
          store_pack<bfloat16, 8>(out + folded_pixel(pixel) + first_channel, values);
        }
      }
      __syncthreads();
    }
  }
}

}  // namespace

cudaError_t launch_first_convolution(const FirstConvolutionParams& p, cudaStream_t stream) {
  const int64_t chunks = p.batch * ((p.steps + kChunkSteps - 1) / kChunkSteps);
  if (chunks == 0) return cudaSuccess;
  const int64_t blocks = chunks < kFirstConvolutionBlocks ? chunks : kFirstConvolutionBlocks;
  return launch_kernel(first_convolution_kernel, static_cast<unsigned>(blocks), kThreads,
                       sizeof(FrameRing), stream, p, chunks);
}

}  // namespace dmamba::kernels
