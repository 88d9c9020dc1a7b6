// What is kept beside a parameter, on its way to memory.
#pragma once

#include "kernels/common/storage.cuh"
#include "kernels/optimizer/params.h"

namespace dmamba::kernels {

/// The mirror of the first `count` of four neighbours from `at` on; `whole`: in one access.
__device__ __forceinline__ void store_mirror(void* mirror, Mirror kind, int64_t at,
                                             const float (&p)[4], int count, bool whole) {
  if (kind == Mirror::kBFloat16) {
    store_some<bfloat16, 4>(static_cast<bfloat16*>(mirror) + at, p, count, whole);
  } else if (kind == Mirror::kDecayRates) {
    float rates[4];
#pragma unroll
    for (int e = 0; e < 4; ++e) rates[e] = -expf(p[e]);
    store_some<float, 4>(static_cast<float*>(mirror) + at, rates, count, whole);
  }
}

}  // namespace dmamba::kernels
