// Derivatives of the ops. Double backward is an error, not a wrong number.
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "src/ops/calls.h"
#include "src/ops/checkpoints.h"
#include "src/ops/optional.h"

namespace dmamba::ops {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

Tensor or_undefined(const OptionalTensor& t) { return t.has_value() ? *t : Tensor(); }

/// The gradient of an optional input: undefined where the input was absent.
Tensor gradient_if(const Tensor& input, const Tensor& gradient) {
  return input.defined() ? gradient : Tensor();
}

struct SelectiveScan : torch::autograd::Function<SelectiveScan> {
  static variable_list forward(AutogradContext* context, const Tensor& u, const Tensor& delta,
                               const Tensor& A, const Tensor& B, const Tensor& C,
                               const OptionalTensor& D, const OptionalTensor& z,
                               const OptionalTensor& delta_bias, bool delta_softplus,
                               const OptionalTensor& mask, const OptionalTensor& segment_starts,
                               const OptionalTensor& initial_state, int64_t checkpoint_every) {
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [out, last_state, checkpoints] =
        calls::selective_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, mask,
                              segment_starts, initial_state, checkpoint_every);
    const bool out_is_read = or_undefined(z).defined() && backward_reads_out(u, A.size(1));
    context->save_for_backward({u, delta, A, B, C, or_undefined(D), or_undefined(z),
                                or_undefined(delta_bias), or_undefined(mask),
                                or_undefined(segment_starts), or_undefined(initial_state),
                                checkpoints, out_is_read ? out : Tensor()});
    context->saved_data["delta_softplus"] = delta_softplus;
    context->saved_data["checkpoint_every"] = checkpoint_every;
    context->set_materialize_grads(false);
    context->mark_non_differentiable({checkpoints});
    return {out, last_state, checkpoints};
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const auto saved = context->get_saved_variables();
    const Tensor &u = saved[0], &D = saved[5], &z = saved[6], &delta_bias = saved[7],
                 &initial_state = saved[10];
    const Tensor dout = gradients[0].defined() ? gradients[0] : at::zeros_like(u);
    auto [du, ddelta, dA, dB, dC, dD, dz, ddelta_bias, dinitial_state] =
        calls::selective_scan_backward(
            dout, or_absent(gradients[1]), u, saved[1], saved[2], saved[3], saved[4], or_absent(D),
            or_absent(z), or_absent(delta_bias), context->saved_data["delta_softplus"].toBool(),
            or_absent(saved[8]), or_absent(saved[9]), or_absent(initial_state), saved[11],
            context->saved_data["checkpoint_every"].toInt(), or_absent(saved[12]));
    const Tensor none;
    return {du,
            ddelta,
            dA,
            dB,
            dC,
            gradient_if(D, dD),
            gradient_if(z, dz),
            gradient_if(delta_bias, ddelta_bias),
            none,
            none,
            none,
            gradient_if(initial_state, dinitial_state),
            none};
  }
};

struct CausalConv1d : torch::autograd::Function<CausalConv1d> {
  static variable_list forward(AutogradContext* context, const Tensor& x, const Tensor& weight,
                               const OptionalTensor& bias, bool silu, const OptionalTensor& mask,
                               const OptionalTensor& segment_starts,
                               const OptionalTensor& initial_state) {
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [out, last_state] =
        calls::causal_conv1d(x, weight, bias, silu, mask, segment_starts, initial_state);
    context->save_for_backward({x, weight, or_undefined(bias), or_undefined(mask),
                                or_undefined(segment_starts), or_undefined(initial_state)});
    context->saved_data["silu"] = silu;
    context->set_materialize_grads(false);
    return {out, last_state};
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const auto saved = context->get_saved_variables();
    const Tensor &x = saved[0], &bias = saved[2], &initial_state = saved[5];
    const Tensor dout = gradients[0].defined() ? gradients[0] : at::zeros_like(x);
    auto [dx, dweight, dbias, dinitial_state] =
        calls::causal_conv1d_backward(dout, or_absent(gradients[1]), x, saved[1], or_absent(bias),
                                      context->saved_data["silu"].toBool(), or_absent(saved[3]),
                                      or_absent(saved[4]), or_absent(initial_state));
    const Tensor none;
    return {dx,
            dweight,
            gradient_if(bias, dbias),
            none,
            none,
            none,
            gradient_if(initial_state, dinitial_state)};
  }
};

struct Gelu : torch::autograd::Function<Gelu> {
  static Tensor forward(AutogradContext* context, const Tensor& x) {
    at::AutoDispatchBelowADInplaceOrView guard;
    context->save_for_backward({x});
    return calls::gelu(x);
  }
  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    return {calls::gelu_backward(gradients[0], context->get_saved_variables()[0])};
  }
};

struct Dropout : torch::autograd::Function<Dropout> {
  static Tensor forward(AutogradContext* context, const Tensor& x, double p, int64_t key,
                        int64_t first) {
    at::AutoDispatchBelowADInplaceOrView guard;
    context->saved_data["p"] = p;
    context->saved_data["key"] = key;
    context->saved_data["first"] = first;
    return calls::dropout(x, p, key, first);
  }
  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    return {
        calls::dropout(gradients[0], context->saved_data["p"].toDouble(),
                       context->saved_data["key"].toInt(), context->saved_data["first"].toInt()),
        Tensor(), Tensor(), Tensor()};
  }
};

bool needs_gradient(std::initializer_list<OptionalTensor> inputs) {
  if (!at::GradMode::is_enabled()) return false;
  for (const OptionalTensor& t : inputs) {
    if (t.has_value() && t->defined() && t->requires_grad()) return true;
  }
  return false;
}

std::tuple<Tensor, Tensor, Tensor> selective_scan_autograd(
    const Tensor& u, const Tensor& delta, const Tensor& A, const Tensor& B, const Tensor& C,
    const OptionalTensor& D, const OptionalTensor& z, const OptionalTensor& delta_bias,
    bool delta_softplus, const OptionalTensor& mask, const OptionalTensor& segment_starts,
    const OptionalTensor& initial_state, int64_t checkpoint_every) {
  if (!needs_gradient({u, delta, A, B, C, D, z, delta_bias, initial_state})) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return calls::selective_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, mask,
                                 segment_starts, initial_state, checkpoint_every);
  }
  auto results = SelectiveScan::apply(
      u, delta, A, B, C, D, z, delta_bias, delta_softplus, mask, segment_starts, initial_state,
      checkpoint_every > 0 ? checkpoint_every : checkpoint_interval(u));
  return {results[0], results[1], results[2]};
}

std::tuple<Tensor, Tensor> causal_conv1d_autograd(const Tensor& x, const Tensor& weight,
                                                  const OptionalTensor& bias, bool silu,
                                                  const OptionalTensor& mask,
                                                  const OptionalTensor& segment_starts,
                                                  const OptionalTensor& initial_state) {
  if (!needs_gradient({x, weight, bias, initial_state})) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return calls::causal_conv1d(x, weight, bias, silu, mask, segment_starts, initial_state);
  }
  auto results = CausalConv1d::apply(x, weight, bias, silu, mask, segment_starts, initial_state);
  return {results[0], results[1]};
}

Tensor gelu_autograd(const Tensor& x) { return Gelu::apply(x); }
Tensor dropout_autograd(const Tensor& x, double p, int64_t key, int64_t first) {
  return Dropout::apply(x, p, key, first);
}

}  // namespace

TORCH_LIBRARY_IMPL(dmamba, Autograd, m) {
  m.impl("selective_scan", &selective_scan_autograd);
  m.impl("causal_conv1d", &causal_conv1d_autograd);
  m.impl("gelu", &gelu_autograd);
  m.impl("dropout", &dropout_autograd);
  m.impl("gelu_backward", torch::autograd::autogradNotImplementedFallback());
  m.impl("bias_gelu_", torch::autograd::autogradNotImplementedFallback());
  m.impl("multiply_sum_", torch::autograd::autogradNotImplementedFallback());
  m.impl("selective_scan_backward", torch::autograd::autogradNotImplementedFallback());
  m.impl("selective_scan_backward_out", torch::autograd::autogradNotImplementedFallback());
  m.impl("causal_conv1d_backward_out", torch::autograd::autogradNotImplementedFallback());
  m.impl("causal_conv1d_backward", torch::autograd::autogradNotImplementedFallback());
  m.impl("selective_state_update", torch::autograd::autogradNotImplementedFallback());
  m.impl("causal_conv1d_update", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace dmamba::ops
