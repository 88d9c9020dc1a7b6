// GELU and dropout.
#include "dmamba/nn/elementwise.h"

#include "dmamba/common/error.h"
#include "dmamba/ops/ops.h"
#include "src/nn/keyed_dropout.h"
#include "src/nn/step_context.h"

namespace dmamba::nn {
torch::Tensor GeluImpl::forward(const torch::Tensor& x) { return ops::gelu(x); }

DropoutImpl::DropoutImpl(double p) : p_(p) {
  if (!(p >= 0.0 && p < 1.0)) {
    throw ConfigError("dropout must be in [0, 1), got " + std::to_string(p));
  }
}

torch::Tensor DropoutImpl::apply(const torch::Tensor& x) const {
  if (!active()) return x;
  if (x.is_cuda() && StepScope::current() != nullptr) {
    return keyed_dropout(x, next_dropout_key(x.device()), p_);
  }
  return ops::dropout(x, p_, next_dropout_key());
}

}  // namespace dmamba::nn
