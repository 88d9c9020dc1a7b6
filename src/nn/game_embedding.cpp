// Forward and backward of the embedding of games.
#include "src/nn/game_embedding.h"

#include <torch/csrc/autograd/custom_function.h>

#include "src/nn/plain_dispatch.h"
#include "src/nn/step_context.h"

namespace dmamba::nn {
namespace {

using torch::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
namespace cuda_only = ops::cuda_only;
using cuda_only::GameInputs;

struct EmbedGame : torch::autograd::Function<EmbedGame> {
  static variable_list forward(AutogradContext* context, const Tensor& states,
                               const Tensor& return_weight, const Tensor& return_bias,
                               const Tensor& action_table, const Tensor& local,
                               const Tensor& global, const GameInputs* in) {
    const PlainDispatch guard;
    const auto out = cuda_only::game_embed(*in);
    context->save_for_backward({in->returns_to_go, states, in->actions, in->timesteps, in->mask,
                                return_weight, return_bias, action_table, local, global,
                                in->dropout.key});
    context->set_materialize_grads(false);
    context->saved_data["p"] = in->dropout.p;
    context->saved_data["first"] = in->dropout.first;
    context->saved_data["side"] = side_stream_handle();
    if (!out.token_mask.defined()) return {out.out};
    context->mark_non_differentiable({out.token_mask});
    return {out.out, out.token_mask};
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    refuse_second_order("embed_game");
    const PlainDispatch guard;
    const auto saved = context->get_saved_variables();
    GameInputs in;
    in.returns_to_go = saved[0];
    in.states = saved[1];
    in.actions = saved[2];
    in.timesteps = saved[3];
    in.mask = saved[4];
    in.return_weight = saved[5];
    in.return_bias = saved[6];
    in.action_table = saved[7];
    in.local = saved[8];
    in.global = saved[9];
    in.dropout = {context->saved_data["p"].toDouble(), saved[10],
                  context->saved_data["first"].toInt()};
    const auto out = cuda_only::game_embed_backward(gradients[0].contiguous(), in);
    const int64_t actions = in.action_table.size(0);
    Tensor sums;
    run_beside(context->saved_data["side"].toInt(), [&] { sums = cuda_only::sum_parts(out.parts); },
               {out.parts});
    return {out.dstates,       sums[actions].unsqueeze(1),
            sums[actions + 1], sums.narrow(0, 0, actions),
            out.dlocal,        out.dglobal,
            Tensor()};
  }
};

}  // namespace

cuda_only::GameEmbedding embed_game(const GameInputs& inputs) {
  GameInputs in = inputs;
  for (Tensor* t : {&in.returns_to_go, &in.states, &in.actions, &in.timesteps}) {
    *t = t->contiguous();
  }
  if (in.mask.defined()) in.mask = in.mask.contiguous();
  if (at::GradMode::is_enabled()) {
    const variable_list out = EmbedGame::apply(in.states, in.return_weight, in.return_bias,
                                               in.action_table, in.local, in.global, &in);
    return {out[0], in.mask.defined() ? out[1] : Tensor()};
  }
  const PlainDispatch guard;
  return cuda_only::game_embed(in);
}

}  // namespace dmamba::nn
