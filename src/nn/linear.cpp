// Forward and backward of the linear layer on CUDA.
#include "src/nn/linear.h"

#include <torch/csrc/autograd/custom_function.h>

#include "src/nn/plain_dispatch.h"
#include "src/nn/step_context.h"
#include "src/ops/optional.h"

namespace dmamba::nn {
namespace {

using torch::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct Linear : torch::autograd::Function<Linear> {
  static Tensor forward(AutogradContext* context, const Tensor& x, const Tensor& weight,
                        const std::optional<Tensor>& bias) {
    const auto type = product_type(x);
    const PlainDispatch guard;
    const Tensor input = rows(x).to(type), factor = cast_parameter(weight, type);
    context->save_for_backward({input, factor});
    context->saved_data["x_type"] = x.scalar_type();
    context->saved_data["side"] = side_stream_handle();
    context->saved_data["bias"] = bias.has_value();
    const Tensor y =
        bias.has_value() ? at::addmm(bias->to(type), input, factor.t()) : product(input, factor);
    return y.view({x.size(0), x.size(1), weight.size(0)});
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    refuse_second_order("linear");
    const PlainDispatch guard;
    const auto saved = context->get_saved_variables();
    const Tensor &x = saved[0], &weight = saved[1];
    const Tensor dy = rows(gradients[0]);
    Tensor dweight, dbias;
    if (context->saved_data["bias"].toBool()) dbias = dy.sum(0, false, at::kFloat);
    const auto ask_for_weight = [&] {
      if (!context->needs_input_grad(1)) return;
      dweight = weight_gradient_beside(context->saved_data["side"].toInt(), dy, x, at::kFloat);
    };
    // Those that wait for each other may all begin with this one, and leave little room to dx,
    // which the rest of the pass waits for (docs/performance.md): it goes first then.
    const bool later = ops::cuda_only::weight_gradient_fits(dy, x);
    if (!later) ask_for_weight();
    const Tensor dx = product_by_rows(dy, weight).to(context->saved_data["x_type"].toScalarType());
    if (later) ask_for_weight();
    return {dx.view({gradients[0].size(0), gradients[0].size(1), x.size(1)}), dweight, dbias};
  }
};

}  // namespace

Tensor linear(torch::nn::LinearImpl& layer, const Tensor& x) {
  if (!x.is_cuda() || layer.weight.scalar_type() != at::kFloat) return layer.forward(x);
  return Linear::apply(x, layer.weight, ops::or_absent(layer.bias));
}

}  // namespace dmamba::nn
