// Dropout, addition and LayerNorm: fused on CUDA, composed elsewhere.
#include "src/nn/residual_stream.h"

#include <torch/csrc/autograd/custom_function.h>

#include <utility>

#include "dmamba/ops/ops.h"
#include "src/nn/keyed_dropout.h"
#include "src/nn/plain_dispatch.h"
#include "src/nn/step_context.h"
#include "src/ops/optional.h"

namespace dmamba::nn {
namespace {

using ops::OptionalTensor;
using torch::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
namespace cuda_only = ops::cuda_only;

struct AddNorm : torch::autograd::Function<AddNorm> {
  static variable_list forward(AutogradContext* context, const Tensor& residual,
                               const OptionalTensor& branch_or_none,
                               const OptionalTensor& bias_or_none, const Tensor& weight,
                               const Tensor& norm_bias, const OptionalTensor& key,
                               const cuda_only::Dropout* dropout, double epsilon,
                               at::ScalarType type) {
    const PlainDispatch guard;
    const Tensor branch = branch_or_none.value_or(Tensor()), bias = bias_or_none.value_or(Tensor());
    const auto out =
        cuda_only::add_norm(residual, branch, bias, *dropout, weight, norm_bias, epsilon, type);
    context->save_for_backward({out.sum, out.statistics, weight, key.value_or(Tensor())});
    context->saved_data["p"] = dropout->p;
    context->saved_data["first"] = dropout->first;
    context->saved_data["branch"] = branch.defined();
    context->saved_data["bias"] = bias.defined();
    context->saved_data["side"] = side_stream_handle();
    context->set_materialize_grads(false);
    return {out.sum, out.normed};
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    refuse_second_order("add_norm");
    const PlainDispatch guard;
    const auto saved = context->get_saved_variables();
    const Tensor &sum = saved[0], &statistics = saved[1], &weight = saved[2];
    const bool has_bias = context->saved_data["bias"].toBool();
    const bool has_branch = context->saved_data["branch"].toBool();
    const cuda_only::Dropout dropout{context->saved_data["p"].toDouble(), saved[3],
                                     context->saved_data["first"].toInt()};
    Tensor dsum = gradients[0], dnormed = gradients[1];
    if (!dnormed.defined()) dnormed = at::zeros_like(sum);
    if (dsum.defined()) dsum = dsum.contiguous();
    // Without dropout, in one type, the branch's gradient is the residual's.
    const bool same =
        has_branch && dropout.p == 0.0 && dnormed.scalar_type() == at::kFloat && !has_bias;
    const auto out = cuda_only::add_norm_backward(dnormed.contiguous(), dsum, sum, statistics,
                                                  weight, dropout, has_bias, has_branch && !same);
    Tensor sums;
    run_beside(context->saved_data["side"].toInt(), [&] { sums = cuda_only::sum_parts(out.parts); },
               {out.parts});
    return {out.dresidual,
            same ? out.dresidual : out.dbranch,
            has_bias ? sums[2] : Tensor(),
            sums[0],
            sums[1],
            Tensor(),
            Tensor(),
            Tensor(),
            Tensor()};
  }
};

}  // namespace

ResidualStream::ResidualStream(Tensor x, Tensor normed)
    : fused_(x.is_cuda() && x.scalar_type() == at::kFloat && ops::built_with_cuda() &&
             cuda_only::norm_width_fits(x.size(-1))),
      x_(std::move(x)),
      normed_(std::move(normed)) {
  if (fused_) x_ = x_.contiguous();
}

void ResidualStream::add(Tensor branch) {
  if (!fused_) {
    x_ = x_ + branch;
    return;
  }
  TORCH_INTERNAL_ASSERT(!branch_.defined(), "an addition is held back already");
  branch_ = std::move(branch);
}

void ResidualStream::add(Tensor branch, Tensor bias, const DropoutImpl& dropout) {
  if (!fused_) {
    if (bias.defined()) branch = branch + bias;
    x_ = x_ + dropout.apply(branch);
    return;
  }
  add(std::move(branch));
  bias_ = std::move(bias);
  if (dropout.active()) {
    dropout_ = next_dropout(dropout.p(), x_.device(), x_.size(1) * x_.size(2));
  }
}

Tensor ResidualStream::norm(torch::nn::LayerNormImpl& layer) {
  if (normed_.defined()) {
    TORCH_INTERNAL_ASSERT(!branch_.defined(), "what was added is not in the known norm");
    return std::exchange(normed_, Tensor());
  }
  if (!fused_) return layer.forward(x_);
  const auto type = product_type(x_);
  TORCH_CHECK(type == at::kFloat || type == at::kBFloat16, "LayerNorm: autocast's type must be ",
              "bfloat16, got ", type, "; use torch.autocast(\"cuda\", dtype=torch.bfloat16)");
  const double epsilon = layer.options.eps();
  if (branch_.defined() && branch_.scalar_type() != type) branch_ = branch_.to(type);
  if (branch_.defined()) branch_ = branch_.contiguous();
  Tensor normed;
  if (at::GradMode::is_enabled()) {
    const auto out =
        AddNorm::apply(x_, ops::or_absent(branch_), ops::or_absent(bias_), layer.weight, layer.bias,
                       ops::or_absent(dropout_.key), &dropout_, epsilon, type);
    x_ = out[0];
    normed = out[1];
  } else {
    const PlainDispatch guard;
    const auto out =
        cuda_only::add_norm(x_, branch_, bias_, dropout_, layer.weight, layer.bias, epsilon, type);
    x_ = out.sum;
    normed = out.normed;
  }
  forget_branch();
  return normed;
}

Tensor ResidualStream::value() {
  if (branch_.defined()) {
    const Tensor sum = bias_.defined() ? branch_ + bias_ : branch_;
    x_ = x_ + (dropout_.key.defined() ? keyed_dropout(sum, dropout_) : sum);
    forget_branch();
  }
  return x_;
}

void ResidualStream::forget_branch() {
  branch_ = bias_ = Tensor();
  dropout_ = {};
}

}  // namespace dmamba::nn
