// Forward and backward of the action head.
#include "src/nn/action_loss.h"

#include <torch/csrc/autograd/custom_function.h>

#include "src/nn/plain_dispatch.h"
#include "src/nn/step_context.h"

namespace dmamba::nn {
namespace {

using torch::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
namespace cuda_only = ops::cuda_only;

struct ActionLoss : torch::autograd::Function<ActionLoss> {
  static Tensor forward(AutogradContext* context, const Tensor& y, const Tensor& weight,
                        const Tensor& bias, const Tensor& targets, const Tensor& mask) {
    const PlainDispatch guard;
    const auto out = cuda_only::action_head(y, weight, bias, targets, mask);
    const int64_t side = side_stream_handle();
    context->save_for_backward({y, weight, out.slopes});
    context->saved_data["side"] = side;
    Tensor loss;
    run_beside(side, [&] { loss = cuda_only::sum_parts(out.losses.view({-1, 1})).squeeze(0); },
               {out.losses});
    return loss;
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    refuse_second_order("action_loss");
    const PlainDispatch guard;
    const auto saved = context->get_saved_variables();
    const Tensor &y = saved[0], &weight = saved[1], &slopes = saved[2];
    const auto out = cuda_only::action_head_backward(gradients[0], y, weight, slopes);
    const int64_t act_dim = weight.size(0), width = weight.size(1);
    Tensor dweight, dbias;
    run_beside(context->saved_data["side"].toInt(),
               [&] {
                 const Tensor sums = cuda_only::sum_parts(out[1]);
                 dweight = sums.narrow(0, 0, act_dim * width).view({act_dim, width});
                 dbias = sums.narrow(0, act_dim * width, act_dim);
               },
               {out[1]});
    return {out[0], dweight, dbias, Tensor(), Tensor()};
  }
};

}  // namespace

Tensor action_loss(const Tensor& y, const Tensor& weight, const Tensor& bias, const Tensor& targets,
                   const Tensor& mask) {
  return ActionLoss::apply(y.contiguous(), weight, bias, targets.flatten(0, 1).contiguous(),
                           mask.flatten().contiguous());
}

Tensor action_error(const Tensor& predicted, const Tensor& targets, const Tensor& mask) {
  const Tensor weight = mask.to(torch::kFloat).unsqueeze(2);
  return ((predicted - targets).square() * weight).sum() /
         (weight.sum() * static_cast<double>(targets.size(2)));
}

}  // namespace dmamba::nn
