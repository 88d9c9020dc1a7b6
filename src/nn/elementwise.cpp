// GELU and dropout.
#include "dmamba/nn/elementwise.h"

#include "dmamba/common/error.h"
#include "dmamba/ops/ops.h"
#include "kernels/elementwise/params.h"
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
  const int64_t row = x.numel() == 0 || x.dim() == 0 ? 0 : x.numel() / x.size(0);
  const int64_t before = first_element(row) % kernels::kDropoutStretch;
  // The mask is drawn in stretches: where x begins within one, its beginning is drawn, too.
  if (before != 0) {
    const torch::Tensor whole = torch::cat({x.new_zeros({before}), x.flatten()});
    return draw(whole, row, before).slice(0, before).view(x.sizes());
  }
  return draw(x, row, before);
}

/// Dropout of x whose first element lies `before` elements in front of the first row's.
torch::Tensor DropoutImpl::draw(const torch::Tensor& x, int64_t row, int64_t before) const {
  if (x.is_cuda() && StepScope::current() != nullptr) {
    ops::cuda_only::Dropout dropout = next_dropout(p_, x.device(), row);
    dropout.first -= before;
    return keyed_dropout(x, dropout);
  }
  return ops::dropout(x, p_, next_dropout_key(), first_element(row) - before);
}

}  // namespace dmamba::nn
