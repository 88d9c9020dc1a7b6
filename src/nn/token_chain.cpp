// Forward and backward of the token chain; the gradients of its weights are computed beside.
#include "src/nn/token_chain.h"

#include <torch/csrc/autograd/custom_function.h>

#include "src/nn/plain_dispatch.h"
#include "src/nn/step_context.h"

namespace dmamba::nn {
namespace {

using ops::cuda_only::TokenChainInputs;
using torch::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
namespace cuda_only = ops::cuda_only;

/// What the function is differentiated in, in this order; the last may be absent.
enum Input : size_t {
  kY,
  kResidual,
  kOutProj,
  kNormWeight,
  kNormBias,
  kFirst,
  kFirstBias,
  kSecond,
  kSecondBias,
  kNextNormWeight,
  kNextNormBias,
  kInProj,
  kInputs
};

variable_list differentiated(const TokenChainInputs& in) {
  variable_list inputs(in.in_proj.defined() ? kInputs : kInProj);
  inputs[kY] = in.y;
  inputs[kResidual] = in.residual;
  inputs[kOutProj] = in.out_proj;
  inputs[kNormWeight] = in.norms[0].weight;
  inputs[kNormBias] = in.norms[0].bias;
  inputs[kFirst] = in.first;
  inputs[kFirstBias] = in.first_bias;
  inputs[kSecond] = in.second;
  inputs[kSecondBias] = in.second_bias;
  inputs[kNextNormWeight] = in.norms[1].weight;
  inputs[kNextNormBias] = in.norms[1].bias;
  if (in.in_proj.defined()) inputs[kInProj] = in.in_proj;
  return inputs;
}

/// As the kernels take it.
TokenChainInputs ready(TokenChainInputs in) {
  in.y = in.y.contiguous();
  in.residual = in.residual.contiguous();
  for (Tensor* matrix : {&in.out_proj, &in.first, &in.second, &in.in_proj}) {
    if (matrix->defined()) *matrix = cast_parameter(*matrix, at::kBFloat16).contiguous();
  }
  return in;
}

/// What the backward pass takes from the forward pass.
struct Saved {
  TokenChainInputs in;
  cuda_only::TokenChain chain;
};

void save(AutogradContext* context, const TokenChainInputs& in, const cuda_only::TokenChain& out) {
  // Without an in_proj the second norm is a result, which no gradient of a weight needs.
  const Tensor normed = in.in_proj.defined() ? out.normed[1] : Tensor();
  context->save_for_backward({in.y, in.out_proj, in.first, in.second, in.in_proj,
                              in.norms[0].weight, in.norms[1].weight, in.dropout.key, out.sums[0],
                              out.sums[1], out.statistics[0], out.statistics[1], out.normed[0],
                              normed, out.hidden, out.slope});
  context->saved_data["p"] = in.dropout.p;
  context->saved_data["first"] = in.dropout.first;
  context->saved_data["side"] = side_stream_handle();
}

Saved restore(AutogradContext* context) {
  const auto t = context->get_saved_variables();
  Saved saved;
  saved.in.y = t[0];
  saved.in.out_proj = t[1];
  saved.in.first = t[2];
  saved.in.second = t[3];
  saved.in.in_proj = t[4];
  saved.in.norms[0].weight = t[5];
  saved.in.norms[1].weight = t[6];
  saved.in.dropout = {context->saved_data["p"].toDouble(), t[7],
                      context->saved_data["first"].toInt()};
  saved.chain.sums = {t[8], t[9]};
  saved.chain.statistics = {t[10], t[11]};
  saved.chain.normed = {t[12], t[13]};
  saved.chain.hidden = t[14];
  saved.chain.slope = t[15];
  return saved;
}

/// The gradient of `next`, or zeros.
Tensor gradient_or_zeros(const Tensor& dnext, const Saved& saved) {
  if (dnext.defined()) return dnext.contiguous();
  const auto& [in, chain] = saved;
  const int64_t width = in.in_proj.defined() ? in.in_proj.size(0) : chain.sums[1].size(2);
  return at::zeros({in.y.size(0), in.y.size(1), width}, in.y.options());
}

struct TokenChain : torch::autograd::Function<TokenChain> {
  /// The list is there for autograd alone, which finds in it what needs a gradient.
  static variable_list forward(AutogradContext* context, at::TensorList,
                               const TokenChainInputs* given) {
    const PlainDispatch guard;
    const TokenChainInputs in = ready(*given);
    const auto out = cuda_only::token_chain(in, /*keep=*/true);
    save(context, in, out);
    context->set_materialize_grads(false);
    return {out.sums[1], in.in_proj.defined() ? out.next : out.normed[1]};
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    refuse_second_order("token_chain");
    const PlainDispatch guard;
    const Saved saved = restore(context);
    const auto& [in, chain] = saved;
    const int64_t side = context->saved_data["side"].toInt();
    const Tensor dsum = gradients[0].defined() ? gradients[0].contiguous() : Tensor();
    const Tensor dnext = gradient_or_zeros(gradients[1], saved);
    variable_list d(kInputs + 1);  // and none of the pointer
    WeightGradients weights(side, at::kFloat);
    const auto weight_gradient_of = [&](Input input, const Tensor& dy, const Tensor& x) {
      if (context->needs_input_grad(input)) weights.ask(d[input], rows(dy), rows(x));
    };
    if (in.in_proj.defined()) weight_gradient_of(kInProj, dnext, chain.normed[1]);
    const auto out = cuda_only::token_chain_backward(dnext, dsum, in, chain);
    weight_gradient_of(kSecond, out.dbranch[1], chain.hidden);
    weight_gradient_of(kFirst, out.dhidden, chain.normed[0]);
    weight_gradient_of(kOutProj, out.dbranch[0], in.y);
    weights.finish();

    Tensor sums;
    run_beside(side, [&] { sums = cuda_only::sum_parts(out.parts); }, {out.parts});
    const int64_t width = chain.sums[0].size(2);
    int64_t at = 0;
    for (const Input input :
         {kNextNormWeight, kNextNormBias, kSecondBias, kNormWeight, kNormBias, kFirstBias}) {
      const int64_t count = input == kFirstBias ? in.first.size(0) : width;
      d[input] = sums.narrow(0, at, count);
      at += count;
    }
    d[kY] = out.dy;
    d[kResidual] = out.dresidual;
    if (!in.in_proj.defined()) d.pop_back();
    return d;
  }
};

}  // namespace

ChainedTokens token_chain(const TokenChainInputs& in) {
  if (at::GradMode::is_enabled()) {
    const variable_list inputs = differentiated(in);
    const auto out = TokenChain::apply(at::TensorList(inputs), &in);
    return {out[0], out[1]};
  }
  const PlainDispatch guard;
  const auto out = cuda_only::token_chain(ready(in), /*keep=*/false);
  return {out.sums[1], in.in_proj.defined() ? out.next : out.normed[1]};
}

}  // namespace dmamba::nn
