// Work of several tensors in one launch: which of them a block belongs to.
#pragma once

#include <cuda_runtime.h>

namespace dmamba::kernels {

/// The i with first[i] <= index < first[i + 1], of `count`.
__device__ __forceinline__ int stretch_of(const int* first, int count, int index) {
  int low = 0, high = count;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (first[middle] <= index ? low : high) = middle;
  }
  return low;
}

}  // namespace dmamba::kernels
