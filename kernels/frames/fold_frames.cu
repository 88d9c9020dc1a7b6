// Strips of bytes to folded stacks: what the first convolution reads.
//
// Bound by memory: a stack's 28,224 values are written once in the products' type, and its bytes
// come four times, three of them from the caches. A thread takes one frame of one square: four
// words of four neighbouring pixels in, 16 neighbouring values out; four threads fill the 64
// channels of a pixel, a warp eight of them.
#include "kernels/common/launch.cuh"
#include "kernels/common/storage.cuh"
#include "kernels/frames/launch.h"

namespace dmamba::kernels {
namespace {

constexpr int kThreads = 256;
constexpr int kSide = kFrameSide / kFrameFold, kValues = kFrameFold * kFrameFold;

template <class T>
__global__ void __launch_bounds__(kThreads)
    fold_frames_kernel(const uint8_t* __restrict__ strips, T* __restrict__ out, uint32_t steps,
                       uint32_t count) {
  const uint32_t i = blockIdx.x * kThreads + threadIdx.x;
  if (i >= count) return;
  const uint32_t frame = i % kFrameStack, pixel = i / kFrameStack, row = pixel / kSide;
  const uint32_t x = pixel % kSide, y = row % kSide, image = row / kSide;
  const uint32_t strip = image / steps, step = image - strip * steps;
  const uint8_t* from =
      strips + int64_t{strip * (steps + kFrameStack - 1) + step + frame} * kFrameSide * kFrameSide +
      y * kFrameFold * kFrameSide + x * kFrameFold;
  float values[kValues];
#pragma unroll
  for (int dy = 0; dy < kFrameFold; ++dy) {
    const uchar4 pixels = *reinterpret_cast<const uchar4*>(from + dy * kFrameSide);
    values[dy * 4 + 0] = pixels.x;
    values[dy * 4 + 1] = pixels.y;
    values[dy * 4 + 2] = pixels.z;
    values[dy * 4 + 3] = pixels.w;
  }
  constexpr int kPack = 16 / static_cast<int>(sizeof(T));
#pragma unroll
  for (int first = 0; first < kValues; first += kPack) {
    float some[kPack];
#pragma unroll
    for (int e = 0; e < kPack; ++e) some[e] = values[first + e];
    store_pack<T, kPack>(out + int64_t{i} * kValues + first, some);
  }
}

template <class T>
cudaError_t launch(const FoldFramesParams& p, cudaStream_t stream) {
  const int64_t count = p.batch * p.steps * kSide * kSide * kFrameStack;
  if (count == 0) return cudaSuccess;
  if (count > INT32_MAX) return cudaErrorInvalidValue;
  return launch_kernel(fold_frames_kernel<T>,
                       static_cast<unsigned>((count + kThreads - 1) / kThreads), kThreads, 0,
                       stream, p.strips, static_cast<T*>(p.out), static_cast<uint32_t>(p.steps),
                       static_cast<uint32_t>(count));
}

}  // namespace

cudaError_t launch_fold_frames(const FoldFramesParams& p, cudaStream_t stream) {
  return p.storage == Storage::kFloat32 ? launch<float>(p, stream) : launch<bfloat16>(p, stream);
}

}  // namespace dmamba::kernels
