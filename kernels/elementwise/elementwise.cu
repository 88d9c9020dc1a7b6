// GELU and dropout on a CUDA device: elementwise, bound by memory.
//
//   gelu      y = x Phi(x)                      reads x, writes y:       2 n elements
//   backward  dx = dy (Phi(x) + x Phi'(x))      reads x, dy, writes dx:  3 n elements
//   dropout   y = keep ? x scale : 0            reads x, writes y:       2 n elements
//   decay     y = -exp(x), a scan's A           a few thousand numbers: one launch
//
// (Hendrycks and Gimpel, arXiv 1606.08415; Phi is the normal distribution function.) The floor is
// those bytes at the device's copy bandwidth. Dropout draws one Philox block per four elements: in
// fp32 ten rounds of integer arithmetic beside 32 bytes, which the memory hides.
//
// Arithmetic is fp32 whatever the storage. A lane takes 16 bytes at a time; an array whose address
// is no multiple of 16, and the last lane's rest, go element by element.
#include "kernels/common/alignment.h"
#include "kernels/common/dropout.cuh"
#include "kernels/common/launch.cuh"
#include "kernels/common/storage.cuh"
#include "kernels/elementwise/launch.h"

namespace dmamba::kernels {
namespace {

constexpr int kThreads = 256;
constexpr int kWarp = 32;
/// Enough to fill any device several times over; longer arrays are walked in strides of the grid.
constexpr int64_t kMaxBlocks = 4096;

/// What a lane loads and stores at once.
template <class T>
constexpr int kLaneElements = 16 / static_cast<int>(sizeof(T));

/// A lane's elements from i on. `whole`: all of them are there and aligned.
struct Place {
  int count;
  bool whole;
};

template <class T>
__device__ Place lane_place(int64_t i, int64_t count, bool aligned) {
  const bool full = count - i >= kLaneElements<T>;
  return {full ? kLaneElements<T> : static_cast<int>(count - i), aligned && full};
}

/// x, not below -40: Phi is 0 from there on, and 0 times -inf would be NaN. NaN stays.
__device__ float bounded_below(float x) { return x < -40.0f ? -40.0f : x; }

struct GeluForward {
  __device__ static float apply(float x, float) { return bounded_below(x) * normcdff(x); }
};

struct GeluBackward {
  __device__ static float apply(float x, float dy) {
    x = bounded_below(x > 40.0f ? 40.0f : x);
    const float density = 0.3989422804014327f * expf(-0.5f * x * x);  // 1 / sqrt(2 pi)
    return dy * fmaf(x, density, normcdff(x));
  }
};

template <class T, class Op, bool kBackward>
__global__ void __launch_bounds__(kThreads)
    gelu_kernel(const T* __restrict__ x, const T* __restrict__ dy, T* __restrict__ out,
                int64_t count, bool aligned) {
  constexpr int kElements = kLaneElements<T>;
  const int64_t stride = int64_t{gridDim.x} * kThreads * kElements;
  for (int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kElements; i < count;
       i += stride) {
    const Place place = lane_place<T>(i, count, aligned);
    float values[kElements], gradients[kElements] = {};
    fetch<kElements, false>(x + i, place.count, place.whole).get(values);
    if (kBackward) fetch<kElements, false>(dy + i, place.count, place.whole).get(gradients);
#pragma unroll
    for (int e = 0; e < kElements; ++e) values[e] = Op::apply(values[e], gradients[e]);
    store_some<T, kElements>(out + i, values, place.count, place.whole);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    dropout_kernel(const T* __restrict__ x, T* __restrict__ out, int64_t count, uint64_t key,
                   const uint64_t* __restrict__ device_key, uint32_t threshold, float scale,
                   int64_t first, bool aligned) {
  constexpr int kElements = kLaneElements<T>;
  static_assert(kElements * kWarp % 128 == 0, "a warp's tile is whole pairs of stretches");
  if (device_key != nullptr) key = *device_key;
  const int lane = threadIdx.x % kWarp;
  const int64_t stride = int64_t{gridDim.x} * kThreads * kElements;
  // The same for all lanes of a warp: they ballot together to the end.
  int64_t tile = (int64_t{blockIdx.x} * kThreads + threadIdx.x - lane) * kElements;
  for (; tile < count; tile += stride) {
    const uint32_t keep =
        keep_bits<kElements>(static_cast<uint64_t>(first + tile) / 64, key, threshold, lane);
    const int64_t i = tile + lane * kElements;
    if (i >= count) continue;
    const Place place = lane_place<T>(i, count, aligned);
    float values[kElements];
    fetch<kElements, false>(x + i, place.count, place.whole).get(values);
#pragma unroll
    for (int e = 0; e < kElements; ++e) {
      values[e] = (keep >> e & 1u) != 0 ? values[e] * scale : 0.0f;
    }
    store_some<T, kElements>(out + i, values, place.count, place.whole);
  }
}

template <class T>
unsigned blocks_for(int64_t count) {
  constexpr int64_t kBlockElements = int64_t{kThreads} * kLaneElements<T>;
  const int64_t blocks = (count + kBlockElements - 1) / kBlockElements;
  return static_cast<unsigned>(blocks < kMaxBlocks ? blocks : kMaxBlocks);
}

template <class T, class Op, bool kBackward>
cudaError_t launch_gelu(const GeluParams& p, cudaStream_t stream) {
  const bool wide = aligned(p.x, 16) && aligned(p.out, 16) && (!kBackward || aligned(p.dy, 16));
  return launch_kernel(gelu_kernel<T, Op, kBackward>, blocks_for<T>(p.count), kThreads, 0, stream,
                       static_cast<const T*>(p.x), static_cast<const T*>(p.dy),
                       static_cast<T*>(p.out), p.count, wide);
}

template <class Op, bool kBackward>
cudaError_t launch_gelu_stored(const GeluParams& p, cudaStream_t stream) {
  if (p.count == 0) return cudaSuccess;
  switch (p.storage) {
    case Storage::kFloat32:
      return launch_gelu<float, Op, kBackward>(p, stream);
    case Storage::kBFloat16:
      return launch_gelu<bfloat16, Op, kBackward>(p, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

template <class T>
cudaError_t launch_dropout_stored(const DropoutParams& p, const uint64_t* device_key,
                                  cudaStream_t stream) {
  return launch_kernel(dropout_kernel<T>, blocks_for<T>(p.count), kThreads, 0, stream,
                       static_cast<const T*>(p.x), static_cast<T*>(p.out), p.count, p.key,
                       device_key, p.threshold, static_cast<float>(p.scale), p.first,
                       aligned(p.x, 16) && aligned(p.out, 16));
}

}  // namespace

cudaError_t launch_gelu_forward(const GeluParams& p, cudaStream_t stream) {
  return launch_gelu_stored<GeluForward, false>(p, stream);
}

cudaError_t launch_gelu_backward(const GeluParams& p, cudaStream_t stream) {
  return launch_gelu_stored<GeluBackward, true>(p, stream);
}

cudaError_t launch_dropout(const DropoutParams& p, const uint64_t* device_key,
                           cudaStream_t stream) {
  if (p.count == 0) return cudaSuccess;
  switch (p.storage) {
    case Storage::kFloat32:
      return launch_dropout_stored<float>(p, device_key, stream);
    case Storage::kBFloat16:
      return launch_dropout_stored<bfloat16>(p, device_key, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace dmamba::kernels
