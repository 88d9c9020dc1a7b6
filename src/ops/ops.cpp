// The C++ functions of dmamba/ops/ops.h: calls through the dispatcher.
#include "dmamba/ops/ops.h"

#include "src/ops/calls.h"

namespace dmamba::ops {

std::tuple<at::Tensor, at::Tensor> selective_scan(const at::Tensor& u, const at::Tensor& delta,
                                                  const at::Tensor& A, const at::Tensor& B,
                                                  const at::Tensor& C, const OptionalTensor& D,
                                                  const OptionalTensor& z,
                                                  const OptionalTensor& delta_bias,
                                                  bool delta_softplus, const TokenFlags& flags,
                                                  const OptionalTensor& initial_state) {
  auto [out, last_state, checkpoints] =
      calls::selective_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, flags.mask,
                            flags.segment_starts, initial_state, /*checkpoint_every=*/0);
  return {out, last_state};
}

at::Tensor selective_state_update(at::Tensor& state, const at::Tensor& u, const at::Tensor& delta,
                                  const at::Tensor& A, const at::Tensor& B, const at::Tensor& C,
                                  const OptionalTensor& D, const OptionalTensor& z,
                                  const OptionalTensor& delta_bias, bool delta_softplus) {
  return calls::selective_state_update(state, u, delta, A, B, C, D, z, delta_bias, delta_softplus);
}

std::tuple<at::Tensor, at::Tensor> causal_conv1d(const at::Tensor& x, const at::Tensor& weight,
                                                 const OptionalTensor& bias, bool silu,
                                                 const TokenFlags& flags,
                                                 const OptionalTensor& initial_state) {
  return calls::causal_conv1d(x, weight, bias, silu, flags.mask, flags.segment_starts,
                              initial_state);
}

at::Tensor causal_conv1d_update(at::Tensor& state, const at::Tensor& x, const at::Tensor& weight,
                                const OptionalTensor& bias, bool silu) {
  return calls::causal_conv1d_update(state, x, weight, bias, silu);
}

at::Tensor gelu(const at::Tensor& x) { return calls::gelu(x); }

at::Tensor dropout(const at::Tensor& x, double p, int64_t key, int64_t first) {
  return calls::dropout(x, p, key, first);
}

}  // namespace dmamba::ops
