// The registered ops as functions with the schemas' own arguments, looked up once.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>

#include "src/ops/checks.h"

namespace dmamba::ops::calls {

using at::Tensor;

template <class Signature>
c10::TypedOperatorHandle<Signature> find_op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

inline std::tuple<Tensor, Tensor, Tensor> selective_scan(
    const Tensor& u, const Tensor& delta, const Tensor& A, const Tensor& B, const Tensor& C,
    const OptionalTensor& D, const OptionalTensor& z, const OptionalTensor& delta_bias,
    bool delta_softplus, const OptionalTensor& mask, const OptionalTensor& segment_starts,
    const OptionalTensor& initial_state, int64_t checkpoint_every) {
  static const auto op = find_op<decltype(selective_scan)>("dmamba::selective_scan");
  return op.call(u, delta, A, B, C, D, z, delta_bias, delta_softplus, mask, segment_starts,
                 initial_state, checkpoint_every);
}

inline std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>
selective_scan_backward(const Tensor& dout, const OptionalTensor& dlast_state, const Tensor& u,
                        const Tensor& delta, const Tensor& A, const Tensor& B, const Tensor& C,
                        const OptionalTensor& D, const OptionalTensor& z,
                        const OptionalTensor& delta_bias, bool delta_softplus,
                        const OptionalTensor& mask, const OptionalTensor& segment_starts,
                        const OptionalTensor& initial_state, const Tensor& checkpoints,
                        int64_t checkpoint_every, const OptionalTensor& out) {
  static const auto op =
      find_op<decltype(selective_scan_backward)>("dmamba::selective_scan_backward");
  return op.call(dout, dlast_state, u, delta, A, B, C, D, z, delta_bias, delta_softplus, mask,
                 segment_starts, initial_state, checkpoints, checkpoint_every, out);
}

inline std::tuple<Tensor, Tensor, Tensor, Tensor> selective_scan_backward_out(
    const Tensor& dout, const OptionalTensor& dlast_state, const Tensor& u, const Tensor& delta,
    const Tensor& A, const Tensor& B, const Tensor& C, const OptionalTensor& D,
    const OptionalTensor& z, const OptionalTensor& delta_bias, bool delta_softplus,
    const OptionalTensor& mask, const OptionalTensor& segment_starts,
    const OptionalTensor& initial_state, const Tensor& checkpoints, int64_t checkpoint_every,
    const OptionalTensor& out, const Tensor& du, const Tensor& ddelta, const Tensor& dB,
    const Tensor& dC, const OptionalTensor& dz) {
  static const auto op =
      find_op<decltype(selective_scan_backward_out)>("dmamba::selective_scan_backward_out");
  return op.call(dout, dlast_state, u, delta, A, B, C, D, z, delta_bias, delta_softplus, mask,
                 segment_starts, initial_state, checkpoints, checkpoint_every, out, du, ddelta, dB,
                 dC, dz);
}

inline Tensor selective_state_update(Tensor& state, const Tensor& u, const Tensor& delta,
                                     const Tensor& A, const Tensor& B, const Tensor& C,
                                     const OptionalTensor& D, const OptionalTensor& z,
                                     const OptionalTensor& delta_bias, bool delta_softplus) {
  static const auto op =
      find_op<decltype(selective_state_update)>("dmamba::selective_state_update");
  return op.call(state, u, delta, A, B, C, D, z, delta_bias, delta_softplus);
}

inline std::tuple<Tensor, Tensor> causal_conv1d(const Tensor& x, const Tensor& weight,
                                                const OptionalTensor& bias, bool silu,
                                                const OptionalTensor& mask,
                                                const OptionalTensor& segment_starts,
                                                const OptionalTensor& initial_state) {
  static const auto op = find_op<decltype(causal_conv1d)>("dmamba::causal_conv1d");
  return op.call(x, weight, bias, silu, mask, segment_starts, initial_state);
}

inline std::tuple<Tensor, Tensor, Tensor, Tensor> causal_conv1d_backward(
    const Tensor& dout, const OptionalTensor& dlast_state, const Tensor& x, const Tensor& weight,
    const OptionalTensor& bias, bool silu, const OptionalTensor& mask,
    const OptionalTensor& segment_starts, const OptionalTensor& initial_state) {
  static const auto op =
      find_op<decltype(causal_conv1d_backward)>("dmamba::causal_conv1d_backward");
  return op.call(dout, dlast_state, x, weight, bias, silu, mask, segment_starts, initial_state);
}

inline std::tuple<Tensor, Tensor, Tensor> causal_conv1d_backward_out(
    const Tensor& dout, const OptionalTensor& dlast_state, const Tensor& x, const Tensor& weight,
    const OptionalTensor& bias, bool silu, const OptionalTensor& mask,
    const OptionalTensor& segment_starts, const OptionalTensor& initial_state, const Tensor& dx) {
  static const auto op =
      find_op<decltype(causal_conv1d_backward_out)>("dmamba::causal_conv1d_backward_out");
  return op.call(dout, dlast_state, x, weight, bias, silu, mask, segment_starts, initial_state, dx);
}

inline Tensor causal_conv1d_update(Tensor& state, const Tensor& x, const Tensor& weight,
                                   const OptionalTensor& bias, bool silu) {
  static const auto op = find_op<decltype(causal_conv1d_update)>("dmamba::causal_conv1d_update");
  return op.call(state, x, weight, bias, silu);
}

inline Tensor gelu(const Tensor& x) {
  static const auto op = find_op<decltype(gelu)>("dmamba::gelu");
  return op.call(x);
}

inline Tensor gelu_backward(const Tensor& dy, const Tensor& x) {
  static const auto op = find_op<decltype(gelu_backward)>("dmamba::gelu_backward");
  return op.call(dy, x);
}

inline Tensor bias_gelu_(const Tensor& x, const Tensor& bias) {
  static const auto op = find_op<decltype(bias_gelu_)>("dmamba::bias_gelu_");
  return op.call(x, bias);
}

inline Tensor multiply_sum_(const Tensor& dy, const Tensor& slope) {
  static const auto op = find_op<decltype(multiply_sum_)>("dmamba::multiply_sum_");
  return op.call(dy, slope);
}

inline Tensor dropout(const Tensor& x, double p, int64_t key, int64_t first) {
  static const auto op = find_op<decltype(dropout)>("dmamba::dropout");
  return op.call(x, p, key, first);
}

}  // namespace dmamba::ops::calls
