// Meta kernels: shapes, dtypes and strides of the results, for torch.compile and fake tensors.
#include <ATen/ATen.h>
#include <torch/library.h>

#include "src/ops/checkpoints.h"
#include "src/ops/checks.h"

namespace dmamba::ops {
namespace {

using at::Tensor;

Tensor contiguous_like(const Tensor& t) { return at::empty_symint(t.sym_sizes(), t.options()); }

Tensor gradient_of(const OptionalTensor& t, const Tensor& like) {
  return t.has_value() && t->defined() ? contiguous_like(*t) : absent_gradient(like);
}

Tensor gradient_of_state(const OptionalTensor& state, const Tensor& like) {
  if (!state.has_value() || !state->defined()) return absent_gradient(like);
  return empty_state(like, state->sym_size(0), state->sym_size(1), state->sym_size(2));
}

std::tuple<Tensor, Tensor, Tensor> selective_scan_meta(
    const Tensor& u, const Tensor& delta, const Tensor& A, const Tensor& B, const Tensor& C,
    const OptionalTensor& D, const OptionalTensor& z, const OptionalTensor& delta_bias,
    bool delta_softplus, const OptionalTensor& mask, const OptionalTensor& segment_starts,
    const OptionalTensor& initial_state, int64_t checkpoint_every) {
  check_selective_scan("selective_scan", u, delta, A, B, C, D, z, delta_bias, mask, segment_starts,
                       initial_state);
  const auto n_checkpoints = checkpoint_every > 0 ? (u.sym_size(1) - 1) / checkpoint_every : 0;
  // Fake tensors do not say whose they are; the interval does.
  const at::ScalarType kept = checkpoint_every == kCudaCheckpointEvery
                                  ? cuda_checkpoint_type(u.scalar_type(), A.size(1))
                                  : parameter_dtype(u.scalar_type());
  return {contiguous_like(u), empty_state(u, u.sym_size(0), u.sym_size(2), A.sym_size(1)),
          at::empty_symint({u.sym_size(0), n_checkpoints, A.sym_size(1), u.sym_size(2)},
                           u.options().dtype(kept))};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>
selective_scan_backward_meta(const Tensor& dout, const OptionalTensor& dlast_state, const Tensor& u,
                             const Tensor& delta, const Tensor& A, const Tensor& B, const Tensor& C,
                             const OptionalTensor& D, const OptionalTensor& z,
                             const OptionalTensor& delta_bias, bool delta_softplus,
                             const OptionalTensor& mask, const OptionalTensor& segment_starts,
                             const OptionalTensor& initial_state, const Tensor& checkpoints,
                             int64_t checkpoint_every, const OptionalTensor& out) {
  return {contiguous_like(u), contiguous_like(delta),     contiguous_like(A),
          contiguous_like(B), contiguous_like(C),         gradient_of(D, u),
          gradient_of(z, u),  gradient_of(delta_bias, u), gradient_of_state(initial_state, u)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> selective_scan_backward_out_meta(
    const Tensor& dout, const OptionalTensor& dlast_state, const Tensor& u, const Tensor& delta,
    const Tensor& A, const Tensor& B, const Tensor& C, const OptionalTensor& D,
    const OptionalTensor& z, const OptionalTensor& delta_bias, bool delta_softplus,
    const OptionalTensor& mask, const OptionalTensor& segment_starts,
    const OptionalTensor& initial_state, const Tensor& checkpoints, int64_t checkpoint_every,
    const OptionalTensor& out, const Tensor& du, const Tensor& ddelta, const Tensor& dB,
    const Tensor& dC, const OptionalTensor& dz) {
  return {contiguous_like(A), gradient_of(D, u), gradient_of(delta_bias, u),
          gradient_of_state(initial_state, u)};
}

Tensor selective_state_update_meta(Tensor& state, const Tensor& u, const Tensor& delta,
                                   const Tensor& A, const Tensor& B, const Tensor& C,
                                   const OptionalTensor& D, const OptionalTensor& z,
                                   const OptionalTensor& delta_bias, bool delta_softplus) {
  return contiguous_like(u);
}

std::tuple<Tensor, Tensor> causal_conv1d_meta(const Tensor& x, const Tensor& weight,
                                              const OptionalTensor& bias, bool silu,
                                              const OptionalTensor& mask,
                                              const OptionalTensor& segment_starts,
                                              const OptionalTensor& initial_state) {
  check_causal_conv1d("causal_conv1d", x, weight, bias, mask, segment_starts, initial_state);
  return {contiguous_like(x), empty_state(x, x.sym_size(0), x.sym_size(2), weight.sym_size(1) - 1)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> causal_conv1d_backward_meta(
    const Tensor& dout, const OptionalTensor& dlast_state, const Tensor& x, const Tensor& weight,
    const OptionalTensor& bias, bool silu, const OptionalTensor& mask,
    const OptionalTensor& segment_starts, const OptionalTensor& initial_state) {
  return {contiguous_like(x), contiguous_like(weight), gradient_of(bias, x),
          gradient_of_state(initial_state, x)};
}

std::tuple<Tensor, Tensor, Tensor> causal_conv1d_backward_out_meta(
    const Tensor& dout, const OptionalTensor& dlast_state, const Tensor& x, const Tensor& weight,
    const OptionalTensor& bias, bool silu, const OptionalTensor& mask,
    const OptionalTensor& segment_starts, const OptionalTensor& initial_state, const Tensor& dx) {
  return {contiguous_like(weight), gradient_of(bias, x), gradient_of_state(initial_state, x)};
}

Tensor causal_conv1d_update_meta(Tensor& state, const Tensor& x, const Tensor& weight,
                                 const OptionalTensor& bias, bool silu) {
  return contiguous_like(x);
}

Tensor gelu_meta(const Tensor& x) { return contiguous_like(x); }
Tensor gelu_backward_meta(const Tensor& dy, const Tensor& x) { return contiguous_like(x); }
Tensor bias_gelu_meta(const Tensor& x, const Tensor& bias) { return contiguous_like(x); }
Tensor multiply_sum_meta(const Tensor& dy, const Tensor& slope) {
  return at::empty_symint({dy.sym_size(1)}, dy.options().dtype(parameter_dtype(dy.scalar_type())));
}
Tensor dropout_meta(const Tensor& x, double p, int64_t key, int64_t first) {
  return contiguous_like(x);
}

}  // namespace

TORCH_LIBRARY_IMPL(dmamba, Meta, m) {
  m.impl("selective_scan", &selective_scan_meta);
  m.impl("selective_scan_backward", &selective_scan_backward_meta);
  m.impl("selective_scan_backward_out", &selective_scan_backward_out_meta);
  m.impl("selective_state_update", &selective_state_update_meta);
  m.impl("causal_conv1d", &causal_conv1d_meta);
  m.impl("causal_conv1d_backward", &causal_conv1d_backward_meta);
  m.impl("causal_conv1d_backward_out", &causal_conv1d_backward_out_meta);
  m.impl("causal_conv1d_update", &causal_conv1d_update_meta);
  m.impl("gelu", &gelu_meta);
  m.impl("gelu_backward", &gelu_backward_meta);
  m.impl("bias_gelu_", &bias_gelu_meta);
  m.impl("multiply_sum_", &multiply_sum_meta);
  m.impl("dropout", &dropout_meta);
}

}  // namespace dmamba::ops
