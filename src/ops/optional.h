// Tensors that may be missing. Functions on them here take undefined ones; ops and autograd take
// optional ones.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace dmamba::ops {

inline std::optional<at::Tensor> or_absent(const at::Tensor& t) {
  return t.defined() ? std::optional<at::Tensor>(t) : std::nullopt;
}

}  // namespace dmamba::ops
