// Forward and backward of the keyed dropout.
#include "src/nn/keyed_dropout.h"

#include <torch/csrc/autograd/custom_function.h>

#include "src/nn/plain_dispatch.h"

namespace dmamba::nn {
namespace {

using ops::cuda_only::Dropout;
using torch::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct KeyedDropout : torch::autograd::Function<KeyedDropout> {
  static Tensor forward(AutogradContext* context, const Tensor& x, const Tensor& key,
                        const Dropout* dropout) {
    const PlainDispatch guard;
    context->save_for_backward({key});
    context->saved_data["p"] = dropout->p;
    context->saved_data["first"] = dropout->first;
    return ops::cuda_only::dropout(x, *dropout);
  }
  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    refuse_second_order("dropout");
    const PlainDispatch guard;
    const Dropout dropout{context->saved_data["p"].toDouble(), context->get_saved_variables()[0],
                          context->saved_data["first"].toInt()};
    return {ops::cuda_only::dropout(gradients[0], dropout), Tensor(), Tensor()};
  }
};

}  // namespace

torch::Tensor keyed_dropout(const torch::Tensor& x, const Dropout& dropout) {
  return KeyedDropout::apply(x, dropout.key, &dropout);
}

}  // namespace dmamba::nn
