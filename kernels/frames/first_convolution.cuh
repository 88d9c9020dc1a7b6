// What the first convolution's two directions share: the frames in shared memory.
//
// 8 x 8 / 4 over four frames is, on folded pixels, 2 x 2 / 1 over 64 channels: an output is a sum
// over 16 blocks (frame, row, column) of 16 pixels, which lie side by side. A frame lies in shared
// memory as bfloat16, (2, 441, 8): the upper and the lower half of each square, so that the halves
// of neighbouring squares, which the rows of a tile are, fall into different banks.
#pragma once

#include "kernels/common/mma.cuh"
#include "kernels/common/storage.cuh"
#include "kernels/frames/launch.h"
#include "kernels/frames/relu.cuh"

namespace dmamba::kernels {

constexpr int kSquares = kFrameSide / kFrameFold;                      // 21 a side
constexpr int kFrameSquares = kSquares * kSquares;                     // 441
constexpr int kOutSide = kSquares - 1, kPixels = kOutSide * kOutSide;  // 20, 400
constexpr int kOutChannels = 32;
constexpr int kTileRows = 16, kTiles = kPixels / kTileRows;  // 25
constexpr int kBlocks = kFrameStack * 4;                     // of 16 pixels, summed over
constexpr int kFrameBytes = kFrameSide * kFrameSide;
constexpr int kChunkSteps = 8;  // of a strip, a piece of work

struct FrameRing {
  bfloat16 pixels[kFrameStack][2][kFrameSquares][8];
};

/// A byte of a word as a float: the mantissa of 2^23 + byte.
__device__ __forceinline__ float byte_of(uint32_t word, int byte) {
  return __uint_as_float(__byte_perm(word, 0x4B000000U, 0x7540U + static_cast<uint32_t>(byte))) -
         8388608.0F;
}

/// A frame on its way to a slot of the ring. Bytes are fetched while the block still multiplies, so
/// that nobody waits for them; all threads call both.
template <int kThreads>
class FrameInFlight {
 public:
  __device__ __forceinline__ void fetch(const uint8_t* frame) {
#pragma unroll
    for (int n = 0; n < kCount; ++n) {
      const int i = static_cast<int>(threadIdx.x) + n * kThreads;
      if (i >= 2 * kFrameSquares) break;
      const int half = i / kFrameSquares, square = i - half * kFrameSquares;
      const int y = square / kSquares, x = square - y * kSquares;
      const uint8_t* from = frame + (y * kFrameFold + 2 * half) * kFrameSide + x * kFrameFold;
      rows_[n][0] = *reinterpret_cast<const uint32_t*>(from);
      rows_[n][1] = *reinterpret_cast<const uint32_t*>(from + kFrameSide);
    }
  }

  __device__ __forceinline__ void store(bfloat16 (*slot)[kFrameSquares][8]) const {
#pragma unroll
    for (int n = 0; n < kCount; ++n) {
      const int i = static_cast<int>(threadIdx.x) + n * kThreads;
      if (i >= 2 * kFrameSquares) break;
      float values[8];
#pragma unroll
      for (int e = 0; e < 8; ++e) values[e] = byte_of(rows_[n][e / 4], e % 4);
      store_pack<bfloat16, 8>(&slot[0][0][0] + i * 8, values);
    }
  }

 private:
  static constexpr int kCount = (2 * kFrameSquares + kThreads - 1) / kThreads;
  uint32_t rows_[kCount][2];
};

/// The frames of a chunk's first stack but for its newest, which is left in flight.
template <int kThreads>
__device__ __forceinline__ void begin_chunk(const uint8_t* frames, FrameRing& ring,
                                            FrameInFlight<kThreads>& next) {
#pragma unroll 1
  for (int f = 0; f < kFrameStack - 1; ++f) {
    next.fetch(frames + f * kFrameBytes);
    next.store(ring.pixels[f]);
  }
  next.fetch(frames + (kFrameStack - 1) * kFrameBytes);
}

/// The square in the upper left of an output pixel's window.
__device__ __forceinline__ int square_of(int pixel) {
  return pixel + pixel / kOutSide;  // 20 pixels a row, 21 squares
}

/// Where the 32 channels of a pixel lie in an image that is folded by 2.
__device__ __forceinline__ int folded_pixel(int pixel) {
  const int y = pixel / kOutSide, x = pixel - y * kOutSide;
  return (((y / 2) * (kOutSide / 2) + x / 2) * 4 + y % 2 * 2 + x % 2) * kOutChannels;
}

/// A piece of work: up to kChunkSteps neighbouring steps of a strip.
struct Chunk {
  const uint8_t* frames;  // of the first step's stack
  int64_t image;          // the first step's
  int steps;
};

__device__ __forceinline__ Chunk chunk_of(const uint8_t* strips, int64_t steps, int64_t index) {
  const int64_t chunks = (steps + kChunkSteps - 1) / kChunkSteps, strip = index / chunks;
  const int64_t first = (index - strip * chunks) * kChunkSteps;
  return {strips + (strip * (steps + kFrameStack - 1) + first) * kFrameBytes, strip * steps + first,
          static_cast<int>(min(static_cast<int64_t>(kChunkSteps), steps - first))};
}

}  // namespace dmamba::kernels
