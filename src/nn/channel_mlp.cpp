// Forward and backward of the channel mixer over whole rows of tokens.
#include "src/nn/channel_mlp.h"

#include <torch/csrc/autograd/custom_function.h>

#include "src/nn/plain_dispatch.h"
#include "src/nn/step_context.h"
#include "src/ops/calls.h"
#include "src/ops/optional.h"

namespace dmamba::nn {
namespace {

using torch::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
namespace calls = ops::calls;
namespace cuda_only = ops::cuda_only;

struct Forward {
  Tensor weight1, weight2;  // in the products' type
  Tensor x;                 // (tokens, d_model), in the products' type
  Tensor slope;             // (tokens, hidden)
  Tensor hidden;            // (tokens, hidden), after the GELU
  Tensor out;               // (tokens, d_model)
};

Forward run_forward(const Tensor& x, const Tensor& weight1, const Tensor& bias1,
                    const Tensor& weight2, const Tensor& bias2) {
  const auto type = product_type(x);
  const PlainDispatch guard;
  Forward f;
  f.x = rows(x).to(type);
  f.weight1 = cast_parameter(weight1, type);
  f.weight2 = cast_parameter(weight2, type);
  if (bias1.scalar_type() == at::kFloat && cuda_only::linear_fits(f.x, f.weight1)) {
    std::tie(f.hidden, f.slope) = cuda_only::linear_gelu(f.x, f.weight1, bias1);
  } else {
    f.slope = at::mm(f.x, f.weight1.t());  // before the GELU, until it is overwritten
    f.hidden = calls::bias_gelu_(f.slope, bias1);
  }
  f.out = bias2.defined() ? at::addmm(bias2.to(type), f.hidden, f.weight2.t())
                          : product(f.hidden, f.weight2);
  return f;
}

/// The gradient before the GELU, of dout (tokens, d_model), and its sums over the tokens.
std::tuple<Tensor, Tensor> gelu_backward(const Tensor& dout, const Tensor& weight2,
                                         const Tensor& slope) {
  if (cuda_only::linear_fits(dout, weight2)) return cuda_only::linear_slope(dout, weight2, slope);
  Tensor dhidden = at::mm(dout, weight2);
  Tensor sums = calls::multiply_sum_(dhidden, slope);
  return {dhidden, sums};
}

struct ChannelMlp : torch::autograd::Function<ChannelMlp> {
  static Tensor forward(AutogradContext* context, const Tensor& x, const Tensor& weight1,
                        const Tensor& bias1, const Tensor& weight2,
                        const std::optional<Tensor>& bias2) {
    const Forward f = run_forward(x, weight1, bias1, weight2, bias2.value_or(Tensor()));
    context->save_for_backward({f.x, f.slope, f.hidden, f.weight1, f.weight2});
    context->saved_data["x_type"] = x.scalar_type();
    context->saved_data["parameter_type"] = weight1.scalar_type();
    context->saved_data["bias2"] = bias2.has_value();
    context->saved_data["side"] = side_stream_handle();
    return f.out.view(x.sizes());
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    refuse_second_order("channel_mlp");
    const PlainDispatch guard;
    const auto saved = context->get_saved_variables();
    const Tensor &x = saved[0], &slope = saved[1], &hidden = saved[2], &weight1 = saved[3],
                 &weight2 = saved[4];
    const auto parameter = context->saved_data["parameter_type"].toScalarType();
    const int64_t side = context->saved_data["side"].toInt();
    const Tensor dout = rows(gradients[0]).contiguous();
    Tensor dweight1, dweight2, dbias2;
    WeightGradients weights(side, parameter);
    // Inputs: x, weight1, bias1, weight2.
    if (context->needs_input_grad(3)) weights.ask(dweight2, dout, hidden);
    Tensor dhidden, dbias1;
    {
      // A gradient that nobody takes would be freed, and its memory reused, before it is written.
      const bool taken = context->needs_input_grad(2);
      const ops::SumsBeside beside(taken ? side_stream(side) : nullptr);
      std::tie(dhidden, dbias1) = gelu_backward(dout, weight2, slope);
    }
    if (context->needs_input_grad(1)) weights.ask(dweight1, dhidden, x);
    weights.finish();
    const Tensor dx = product_by_rows(dhidden, weight1);
    if (context->saved_data["bias2"].toBool()) dbias2 = dout.sum(0, false, parameter);
    return {dx.view(gradients[0].sizes()).to(context->saved_data["x_type"].toScalarType()),
            dweight1, dbias1, dweight2, dbias2};
  }
};

}  // namespace

Tensor channel_mlp(const Tensor& x, const Tensor& weight1, const Tensor& bias1,
                   const Tensor& weight2, const Tensor& bias2) {
  return ChannelMlp::apply(x, weight1, bias1, weight2, ops::or_absent(bias2));
}

}  // namespace dmamba::nn
