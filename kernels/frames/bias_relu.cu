// Bias, ReLU and folding between two convolutions, and their gradients: one pass over the
// activations each way, bound by memory.
//
// A thread takes 16 bytes of neighbouring channels. In the backward pass it stays with its channels
// and walks over the pixels, so that the bias' gradient is a sum in registers, then over the block,
// in an order that the sizes alone decide.
#include "kernels/common/launch.cuh"
#include "kernels/common/storage.cuh"
#include "kernels/frames/launch.h"
#include "kernels/frames/relu.cuh"

namespace dmamba::kernels {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 1056;  // eight a multiprocessor of the largest devices

template <class T>
constexpr int kPack = 16 / static_cast<int>(sizeof(T));

/// Where the channels of a pixel (its number among all images' pixels) lie once folded. In 32 bits:
/// divisions are most of the instructions here.
template <int kFold>
__device__ int64_t folded_offset(const ReluSizes& s, uint32_t pixel) {
  if (kFold == 1) return int64_t{pixel} * s.channels;
  const auto rows = static_cast<uint32_t>(s.rows), columns = static_cast<uint32_t>(s.columns);
  const uint32_t row = pixel / columns, x = pixel - row * columns;  // rows of all images
  const uint32_t image = row / rows, y = row - image * rows;
  const uint32_t square = (image * (rows / kFold) + y / kFold) * (columns / kFold) + x / kFold;
  return int64_t{square * (kFold * kFold) + y % kFold * kFold + x % kFold} * s.channels;
}

template <class T, int kFold>
__global__ void __launch_bounds__(kThreads)
    bias_relu_kernel(const __grid_constant__ BiasReluParams p, uint32_t count) {
  const uint32_t i = blockIdx.x * kThreads + threadIdx.x;
  if (i >= count) return;
  const uint32_t packs = static_cast<uint32_t>(p.sizes.channels) / kPack<T>, pixel = i / packs;
  const uint32_t channel = (i - pixel * packs) * kPack<T>;
  float values[kPack<T>];
  load_pack<T, kPack<T>>(static_cast<const T*>(p.raw) + int64_t{i} * kPack<T>, values);
#pragma unroll
  for (int e = 0; e < kPack<T>; ++e) values[e] = relu(values[e] + p.bias[channel + e]);
  store_pack<T, kPack<T>>(static_cast<T*>(p.out) + folded_offset<kFold>(p.sizes, pixel) + channel,
                          values);
}

template <class T, int kFold>
__global__ void __launch_bounds__(kThreads)
    bias_relu_backward_kernel(const __grid_constant__ BiasReluGradients p, uint32_t pixels) {
  const uint32_t packs = static_cast<uint32_t>(p.sizes.channels) / kPack<T>;
  const uint32_t row = threadIdx.x / packs, rows = kThreads / packs;
  const uint32_t channel = threadIdx.x % packs * kPack<T>;
  float sums[kPack<T>] = {};
  if (row < rows) {
    for (uint32_t pixel = blockIdx.x * rows + row; pixel < pixels; pixel += gridDim.x * rows) {
      const int64_t folded = folded_offset<kFold>(p.sizes, pixel) + channel;
      float out[kPack<T>], slope[kPack<T>];
      load_pack<T, kPack<T>>(static_cast<const T*>(p.out) + folded, out);
      load_pack<T, kPack<T>>(static_cast<const T*>(p.dout) + folded, slope);
#pragma unroll
      for (int e = 0; e < kPack<T>; ++e) {
        slope[e] = relu_gradient(out[e], slope[e]);
        sums[e] += slope[e];
      }
      store_pack<T, kPack<T>>(static_cast<T*>(p.draw) + int64_t{pixel} * p.sizes.channels + channel,
                              slope);
    }
  }
  __shared__ float shared[kThreads * kPack<T>];
#pragma unroll
  for (int e = 0; e < kPack<T>; ++e) shared[threadIdx.x * kPack<T> + e] = sums[e];
  __syncthreads();
  const int width = static_cast<int>(p.sizes.channels);
  for (int c = threadIdx.x; c < width; c += kThreads) {
    float sum = 0.0F;
    for (uint32_t r = 0; r < rows; ++r) sum += shared[r * width + c];
    p.parts[int64_t{blockIdx.x} * width + c] = sum;
  }
}

int64_t pixels_of(const ReluSizes& s) { return s.images * s.rows * s.columns; }

/// Sizes that the kernels count in 32 bits and in whole packs, folded by 1 or 2.
bool fits(const ReluSizes& s) {
  constexpr int64_t kMost = int64_t{1} << 31;
  return s.channels > 0 && s.channels % 8 == 0 && s.channels <= kThreads &&
         (s.fold == 1 || s.fold == 2) && s.rows % s.fold == 0 && s.columns % s.fold == 0 &&
         pixels_of(s) * s.channels / 4 < kMost;
}

template <class T, int kFold>
cudaError_t forward(const BiasReluParams& p, cudaStream_t stream) {
  const int64_t count = pixels_of(p.sizes) * (p.sizes.channels / kPack<T>);
  if (count == 0) return cudaSuccess;
  return launch_kernel(bias_relu_kernel<T, kFold>,
                       static_cast<unsigned>((count + kThreads - 1) / kThreads), kThreads, 0,
                       stream, p, static_cast<uint32_t>(count));
}

template <class T, int kFold>
cudaError_t backward(const BiasReluGradients& p, cudaStream_t stream) {
  return launch_kernel(bias_relu_backward_kernel<T, kFold>,
                       static_cast<unsigned>(relu_blocks(p.sizes)), kThreads, 0, stream, p,
                       static_cast<uint32_t>(pixels_of(p.sizes)));
}

/// Calls f with the storage type and the fold as constants.
template <class F>
cudaError_t choose(const ReluSizes& sizes, F&& f) {
  if (!fits(sizes)) return cudaErrorInvalidValue;
  if (sizes.storage == Storage::kFloat32) {
    return sizes.fold == 1 ? f.template operator()<float, 1>() : f.template operator()<float, 2>();
  }
  return sizes.fold == 1 ? f.template operator()<bfloat16, 1>()
                         : f.template operator()<bfloat16, 2>();
}

}  // namespace

cudaError_t launch_bias_relu(const BiasReluParams& p, cudaStream_t stream) {
  return choose(p.sizes, [&]<class T, int kFold>() { return forward<T, kFold>(p, stream); });
}

int64_t relu_blocks(const ReluSizes& sizes) {
  const int64_t wanted = (pixels_of(sizes) + kThreads - 1) / kThreads;
  return wanted < 1 ? 1 : wanted < kMaxBlocks ? wanted : kMaxBlocks;
}

cudaError_t launch_bias_relu_backward(const BiasReluGradients& p, cudaStream_t stream) {
  return choose(p.sizes, [&]<class T, int kFold>() { return backward<T, kFold>(p, stream); });
}

}  // namespace dmamba::kernels
