// Forward and backward of the embedding. Its gradients are the last of a step, and the stream
// beside still has those of the layers to do: all but the norms' are computed in line.
#include "src/nn/token_embedding.h"

#include <torch/csrc/autograd/custom_function.h>

#include "dmamba/ops/ops.h"
#include "src/nn/plain_dispatch.h"
#include "src/nn/step_context.h"
#include "src/ops/optional.h"

namespace dmamba::nn {
namespace {

using torch::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
namespace cuda_only = ops::cuda_only;
using cuda_only::EmbeddingInputs;

struct TokenEmbedding : torch::autograd::Function<TokenEmbedding> {
  static variable_list forward(AutogradContext* context, const Tensor& weight0,
                               const Tensor& weight1, const Tensor& weight2, const Tensor& bias0,
                               const Tensor& bias1, const Tensor& bias2, const Tensor& time,
                               const Tensor& norm_weight, const Tensor& norm_bias,
                               const ops::OptionalTensor& next_weight,
                               const ops::OptionalTensor& /*next_bias*/,
                               const EmbeddingInputs* in) {
    const PlainDispatch guard;
    const auto out = cuda_only::embed(*in);
    context->save_for_backward({in->values[0], in->values[1], in->values[2], weight0, weight1,
                                weight2, in->timesteps, time, norm_weight, norm_bias,
                                in->dropout.key, out.tokens, out.statistics,
                                next_weight.value_or(Tensor()), out.next_statistics});
    context->set_materialize_grads(false);
    context->saved_data["p"] = in->dropout.p;
    context->saved_data["first"] = in->dropout.first;
    context->saved_data["side"] = side_stream_handle();
    if (out.token_mask.defined()) context->mark_non_differentiable({out.token_mask});
    variable_list results{out.out};
    if (out.normed.defined()) results.push_back(out.normed);
    if (out.token_mask.defined()) results.push_back(out.token_mask);
    return results;
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    refuse_second_order("embed_tokens");
    const PlainDispatch guard;
    const auto saved = context->get_saved_variables();
    EmbeddingInputs in;
    for (size_t k = 0; k < 3; ++k) {
      in.values[k] = saved[k];
      in.weights[k] = saved[3 + k];
    }
    in.timesteps = saved[6];
    in.time = saved[7];
    in.norm_weight = saved[8];
    in.norm_bias = saved[9];
    in.dropout = {context->saved_data["p"].toDouble(), saved[10],
                  context->saved_data["first"].toInt()};
    in.next.weight = saved[13];
    Tensor dout = gradients[0], dnormed;
    if (in.next.weight.defined()) dnormed = gradients[1];
    if (dout.defined()) dout = dout.contiguous();
    if (dnormed.defined()) dnormed = dnormed.contiguous();
    const auto norm = cuda_only::embed_norm_backward(
        dout, dnormed, {Tensor(), saved[11], saved[12], Tensor(), Tensor(), saved[14]}, in);
    Tensor norm_sums;
    run_beside(context->saved_data["side"].toInt(),
               [&] { norm_sums = cuda_only::sum_parts(norm.parts); }, {norm.parts});
    const auto [sums, dtime] = cuda_only::embed_gradients(norm, in);
    std::array<Tensor, 3> dweight, dbias;
    const int64_t width = in.time.size(1);
    int64_t at = 0;
    for (size_t k = 0; k < 3; ++k) {
      const int64_t count = in.weights[k].numel();
      dweight[k] = sums.narrow(0, at, count).view(in.weights[k].sizes());
      dbias[k] = sums.narrow(0, at + count, width);
      at += count + width;
    }
    const bool has_next = dnormed.defined();
    return {dweight[0],
            dweight[1],
            dweight[2],
            dbias[0],
            dbias[1],
            dbias[2],
            dtime,
            norm_sums[0],
            norm_sums[1],
            has_next ? norm_sums[2] : Tensor(),
            has_next ? norm_sums[3] : Tensor(),
            Tensor()};
  }
};

}  // namespace

EmbeddedTokens embed_tokens(const EmbeddingInputs& inputs) {
  EmbeddingInputs in = inputs;
  const int64_t batch = in.timesteps.size(0), K = in.timesteps.size(1);
  for (Tensor& values : in.values) values = values.to(at::kFloat).flatten(0, 1).contiguous();
  in.timesteps = in.timesteps.contiguous();
  if (in.first_timesteps.defined()) in.first_timesteps = in.first_timesteps.contiguous();
  if (in.mask.defined()) in.mask = in.mask.contiguous();
  Tensor tokens, mask, normed;
  if (at::GradMode::is_enabled()) {
    const variable_list out =
        TokenEmbedding::apply(in.weights[0], in.weights[1], in.weights[2], in.biases[0],
                              in.biases[1], in.biases[2], in.time, in.norm_weight, in.norm_bias,
                              ops::or_absent(in.next.weight), ops::or_absent(in.next.bias), &in);
    tokens = out[0];
    if (in.next.weight.defined()) normed = out[1];
    if (in.mask.defined()) mask = out.back();
  } else {
    const PlainDispatch guard;
    const auto out = cuda_only::embed(in);
    tokens = out.out;
    mask = out.token_mask;
    normed = out.normed;
  }
  const std::array<int64_t, 3> sizes{batch, 3 * K, in.time.size(1)};
  return {tokens.view(sizes), mask.defined() ? mask.view({batch, 3 * K}) : mask,
          normed.defined() ? normed.view(sizes) : normed};
}

}  // namespace dmamba::nn
