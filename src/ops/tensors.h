// Tensors as the plain views that the kernels take; shared by the CPU and the CUDA side.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "kernels/common/types.h"

namespace dmamba::ops {

inline kernels::Storage storage_of(const at::Tensor& t) {
  switch (t.scalar_type()) {
    case at::kBFloat16:
      return kernels::Storage::kBFloat16;
    case at::kDouble:
      return kernels::Storage::kFloat64;
    case at::kFloat:
      return kernels::Storage::kFloat32;
    default:
      TORCH_CHECK(false, "dmamba: tensors must be float32, bfloat16 or float64, got ",
                  t.scalar_type());
  }
}

/// The tensor, or a copy whose last axis is contiguous.
inline at::Tensor with_contiguous_rows(const at::Tensor& t) {
  return t.stride(-1) == 1 || t.size(-1) == 1 ? t : t.contiguous();
}

inline kernels::Sequence sequence(const at::Tensor& t) {
  return {t.data_ptr(), t.stride(0), t.stride(1)};
}

inline kernels::StateView state_view(const at::Tensor& t) {
  return {t.data_ptr(), t.stride(0), t.stride(1), t.stride(2)};
}

inline bool present(const std::optional<at::Tensor>& t) { return t.has_value() && t->defined(); }

}  // namespace dmamba::ops
