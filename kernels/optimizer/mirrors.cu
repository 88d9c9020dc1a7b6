// What is kept beside parameters (AdamW writes it on its way), in one launch for every 128 of them;
// for forward passes of nobody's training step. Moves 6 bytes a number.
#include <algorithm>

#include "kernels/common/alignment.h"
#include "kernels/common/launch.cuh"
#include "kernels/common/stretches.cuh"
#include "kernels/optimizer/launch.h"
#include "kernels/optimizer/mirror.cuh"

namespace dmamba::kernels {
namespace {

constexpr int kThreads = 256, kStretch = 4 * kThreads;  // numbers of a block
constexpr int kTensorsPerLaunch = 128;

struct MirrorBatch {
  MirrorTensor tensors[kTensorsPerLaunch];
  int first_block[kTensorsPerLaunch + 1];
  int count;
};

__global__ void __launch_bounds__(kThreads) mirrors_kernel(const MirrorBatch batch) {
  const int block = static_cast<int>(blockIdx.x);
  const int tensor = stretch_of(batch.first_block, batch.count, block);
  const MirrorTensor& t = batch.tensors[tensor];
  const int64_t at = int64_t{block - batch.first_block[tensor]} * kStretch + 4 * threadIdx.x;
  const int count = static_cast<int>(min(int64_t{4}, t.count - at));
  if (count <= 0) return;
  const bool whole = t.whole && count == 4;
  float p[4];
  fetch<4, false>(t.parameter + at, count, whole).get(p);
  store_mirror(t.mirror, t.kind, at, p, count, whole);
}

}  // namespace

cudaError_t launch_mirrors(const MirrorTensor* tensors, int count, cudaStream_t stream) {
  for (int first = 0; first < count; first += kTensorsPerLaunch) {
    MirrorBatch batch{};
    batch.count = std::min(kTensorsPerLaunch, count - first);
    for (int i = 0; i < batch.count; ++i) {
      MirrorTensor& t = batch.tensors[i] = tensors[first + i];
      t.whole = aligned(t.parameter, 16) && aligned(t.mirror, 16);
      batch.first_block[i + 1] =
          batch.first_block[i] + static_cast<int>((t.count + kStretch - 1) / kStretch);
    }
    const int blocks = batch.first_block[batch.count];
    if (blocks == 0) continue;
    const cudaError_t error =
        launch_kernel(mirrors_kernel, static_cast<unsigned>(blocks), kThreads, 0, stream, batch);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace dmamba::kernels
