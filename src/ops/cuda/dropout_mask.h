// A dropout as the kernels take it.
#pragma once

#include "kernels/elementwise/launch.h"
#include "kernels/normalization/params.h"
#include "src/ops/cuda_only.h"

namespace dmamba::ops::cuda {

inline kernels::DropoutMask mask_of(const cuda_only::Dropout& dropout) {
  if (!dropout.key.defined() || dropout.p == 0.0) return {nullptr, 0, 1.0F, 0};
  return {dropout.key.const_data_ptr<int64_t>(), kernels::dropout_threshold(dropout.p),
          static_cast<float>(1.0 / (1.0 - dropout.p)), dropout.first};
}

}  // namespace dmamba::ops::cuda
