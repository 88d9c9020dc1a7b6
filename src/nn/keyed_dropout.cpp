// Forward and backward of the keyed dropout.
#include "src/nn/keyed_dropout.h"

#include <torch/csrc/autograd/custom_function.h>

#include "src/nn/plain_dispatch.h"
#include "src/ops/cuda_only.h"

namespace dmamba::nn {
namespace {

using torch::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct KeyedDropout : torch::autograd::Function<KeyedDropout> {
  static Tensor forward(AutogradContext* context, const Tensor& x, const Tensor& key, double p) {
    const PlainDispatch guard;
    context->save_for_backward({key});
    context->saved_data["p"] = p;
    return ops::cuda_only::dropout(x, {p, key});
  }
  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    refuse_second_order("dropout");
    const PlainDispatch guard;
    const Tensor key = context->get_saved_variables()[0];
    return {ops::cuda_only::dropout(gradients[0], {context->saved_data["p"].toDouble(), key}),
            Tensor(), Tensor()};
  }
};

}  // namespace

torch::Tensor keyed_dropout(const torch::Tensor& x, const torch::Tensor& key, double p) {
  return KeyedDropout::apply(x, key, p);
}

}  // namespace dmamba::nn
