// What the fused functions of this folder share.
#pragma once

#include <ATen/core/LegacyTypeDispatch.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/types.h>

namespace dmamba::nn {

/// Keeps autograd and autocast out: a fused function differentiates and types by itself.
struct PlainDispatch {
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  c10::impl::ExcludeDispatchKeyGuard no_autocast{c10::autocast_dispatch_keyset};
};

/// (batch, L, n) -> (batch L, n).
inline torch::Tensor rows(const torch::Tensor& t) { return t.flatten(0, 1); }

/// To be called by backward passes, whose own derivative nothing records: an error, not a wrong
/// number.
inline void refuse_second_order(const char* function) {
  TORCH_CHECK(!at::GradMode::is_enabled(), function,
              ": derivatives of second order are not implemented; leave create_graph out");
}

}  // namespace dmamba::nn
