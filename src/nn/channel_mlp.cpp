// Forward and backward of the channel mixer over whole rows of tokens.
#include "src/nn/channel_mlp.h"

#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/custom_function.h>

#include "src/nn/plain_dispatch.h"
#include "src/ops/calls.h"

namespace dmamba::nn {
namespace {

using torch::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
namespace calls = ops::calls;

struct Forward {
  Tensor x;       // (tokens, d_model), in the products' type
  Tensor slope;   // (tokens, hidden)
  Tensor hidden;  // (tokens, hidden), after the GELU
  Tensor out;     // (tokens, d_model)
};

Forward run_forward(const Tensor& x, const Tensor& weight1, const Tensor& bias1,
                    const Tensor& weight2, const Tensor& bias2) {
  const auto device = x.device().type();
  const auto type = at::autocast::is_autocast_enabled(device) && x.scalar_type() != at::kDouble
                        ? at::autocast::get_autocast_dtype(device)
                        : x.scalar_type();
  const PlainDispatch guard;
  Forward f;
  f.x = rows(x).to(type);
  f.slope = at::mm(f.x, weight1.to(type).t());  // before the GELU, until it is overwritten
  f.hidden = calls::bias_gelu_(f.slope, bias1);
  f.out = at::addmm(bias2.to(type), f.hidden, weight2.to(type).t());
  return f;
}

struct ChannelMlp : torch::autograd::Function<ChannelMlp> {
  static Tensor forward(AutogradContext* context, const Tensor& x, const Tensor& weight1,
                        const Tensor& bias1, const Tensor& weight2, const Tensor& bias2) {
    const Forward f = run_forward(x, weight1, bias1, weight2, bias2);
    context->save_for_backward({f.x, f.slope, f.hidden, weight1, weight2});
    context->saved_data["x_type"] = x.scalar_type();
    return f.out.view(x.sizes());
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    refuse_second_order("channel_mlp");
    const PlainDispatch guard;
    const auto saved = context->get_saved_variables();
    const Tensor &x = saved[0], &slope = saved[1], &hidden = saved[2], &weight1 = saved[3],
                 &weight2 = saved[4];
    const auto type = x.scalar_type(), parameter = weight1.scalar_type();
    const Tensor dout = rows(gradients[0]).contiguous();
    const Tensor dhidden = at::mm(dout, weight2.to(type));
    const Tensor dweight2 = at::mm(dout.t(), hidden);
    const Tensor dbias1 = calls::multiply_sum_(dhidden, slope);
    const Tensor dx = at::mm(dhidden, weight1.to(type));
    const Tensor dweight1 = at::mm(dhidden.t(), x);
    return {dx.view(gradients[0].sizes()).to(context->saved_data["x_type"].toScalarType()),
            dweight1.to(parameter), dbias1, dweight2.to(parameter), dout.sum(0, false, parameter)};
  }
};

}  // namespace

Tensor channel_mlp(const Tensor& x, const Tensor& weight1, const Tensor& bias1,
                   const Tensor& weight2, const Tensor& bias2) {
  return ChannelMlp::apply(x, weight1, bias1, weight2, bias2);
}

}  // namespace dmamba::nn
