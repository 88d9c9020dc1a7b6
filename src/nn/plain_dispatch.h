// What the fused functions of this folder share.
#pragma once

#include <ATen/autocast_mode.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/types.h>

#include "src/ops/cuda_only.h"

namespace dmamba::nn {

/// Keeps autograd and autocast out: a fused function differentiates and types by itself.
struct PlainDispatch {
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  c10::impl::ExcludeDispatchKeyGuard no_autocast{c10::autocast_dispatch_keyset};
};

/// The type in which a matrix product takes x: autocast's, where it is on.
inline at::ScalarType product_type(const torch::Tensor& x) {
  const auto device = x.device().type();
  return at::autocast::is_autocast_enabled(device) && x.scalar_type() != at::kDouble
             ? at::autocast::get_autocast_dtype(device)
             : x.scalar_type();
}

/// (batch, L, n) -> (batch L, n).
inline torch::Tensor rows(const torch::Tensor& t) { return t.flatten(0, 1); }

/// x w^T for x (rows, k) and w (n, k).
inline torch::Tensor product(const torch::Tensor& x, const torch::Tensor& w) {
  namespace cuda_only = ops::cuda_only;
  return cuda_only::linear_product_fits(x, w)
             ? cuda_only::linear_product(x, w, cuda_only::Terms::kColumns)
             : at::mm(x, w.t());
}

/// x w for x (rows, k) and w (k, n).
inline torch::Tensor product_by_rows(const torch::Tensor& x, const torch::Tensor& w) {
  namespace cuda_only = ops::cuda_only;
  return cuda_only::linear_product_fits(x, w)
             ? cuda_only::linear_product(x, w, cuda_only::Terms::kRows)
             : at::mm(x, w);
}

/// The gradient dy^T x of a weight (n, m) for dy (rows, n) and x (rows, m): in float32 from
/// bfloat16 factors too where the device can sum them so.
inline torch::Tensor weight_gradient(const torch::Tensor& dy, const torch::Tensor& x) {
  if (dy.is_cuda() && dy.scalar_type() == at::kBFloat16) return at::mm(dy.t(), x, at::kFloat);
  return at::mm(dy.t(), x);
}

/// To be called by backward passes, whose own derivative nothing records: an error, not a wrong
/// number.
inline void refuse_second_order(const char* function) {
  TORCH_CHECK(!at::GradMode::is_enabled(), function,
              ": derivatives of second order are not implemented; leave create_graph out");
}

}  // namespace dmamba::nn
