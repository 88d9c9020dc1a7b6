// The ops under torch.autocast: activations in the autocast dtype, parameters and states in
// float32.
//
// The kernels want one storage type for all activations, while a region under autocast mixes them:
// a projection gives bfloat16, a normalisation float32. float64 is left alone, as torch's own ops
// leave it. The kernels have no float16: where that is the autocast dtype, the ops run in float32.
// GELU and dropout take either type as it comes.
#include <ATen/autocast_mode.h>
#include <torch/library.h>

#include "src/ops/calls.h"

namespace dmamba::ops {
namespace {

using at::Tensor;

/// Keeps autocast off for a scope (the op itself must not come back here), and casts for it.
/// `activation` is the op's leading one: all the others follow its being float64 or not.
class Casts {
 public:
  Casts(at::DeviceType device, const Tensor& activation)
      : below_(
            c10::DispatchKeySet(at::autocast::get_autocast_dispatch_key_from_device_type(device))),
        device_(device),
        off_(activation.scalar_type() == at::kDouble),
        dtype_(at::autocast::get_autocast_dtype(device) == at::kBFloat16 ? at::kBFloat16
                                                                         : at::kFloat) {}

  Tensor activation(const Tensor& t) const { return to(dtype_, t); }
  OptionalTensor activation(const OptionalTensor& t) const { return to(dtype_, t); }
  Tensor parameter(const Tensor& t) const { return to(at::kFloat, t); }
  OptionalTensor parameter(const OptionalTensor& t) const { return to(at::kFloat, t); }

 private:
  Tensor to(at::ScalarType dtype, const Tensor& t) const {
    return off_ ? t : at::autocast::cached_cast(dtype, t, device_);
  }
  OptionalTensor to(at::ScalarType dtype, const OptionalTensor& t) const {
    return t.has_value() ? OptionalTensor(to(dtype, *t)) : std::nullopt;
  }

  c10::impl::ExcludeDispatchKeyGuard below_;
  at::DeviceType device_;
  bool off_;
  at::ScalarType dtype_;
};

template <at::DeviceType kDevice>
std::tuple<Tensor, Tensor, Tensor> selective_scan_autocast(
    const Tensor& u, const Tensor& delta, const Tensor& A, const Tensor& B, const Tensor& C,
    const OptionalTensor& D, const OptionalTensor& z, const OptionalTensor& delta_bias,
    bool delta_softplus, const OptionalTensor& mask, const OptionalTensor& segment_starts,
    const OptionalTensor& initial_state, int64_t checkpoint_every) {
  const Casts cast(kDevice, u);
  return calls::selective_scan(cast.activation(u), cast.activation(delta), cast.parameter(A),
                               cast.activation(B), cast.activation(C), cast.parameter(D),
                               cast.activation(z), cast.parameter(delta_bias), delta_softplus, mask,
                               segment_starts, cast.parameter(initial_state), checkpoint_every);
}

/// The state is written in place: it has to be float32 already.
template <at::DeviceType kDevice>
Tensor selective_state_update_autocast(Tensor& state, const Tensor& u, const Tensor& delta,
                                       const Tensor& A, const Tensor& B, const Tensor& C,
                                       const OptionalTensor& D, const OptionalTensor& z,
                                       const OptionalTensor& delta_bias, bool delta_softplus) {
  const Casts cast(kDevice, u);
  return calls::selective_state_update(state, cast.activation(u), cast.activation(delta),
                                       cast.parameter(A), cast.activation(B), cast.activation(C),
                                       cast.parameter(D), cast.activation(z),
                                       cast.parameter(delta_bias), delta_softplus);
}

template <at::DeviceType kDevice>
std::tuple<Tensor, Tensor> causal_conv1d_autocast(const Tensor& x, const Tensor& weight,
                                                  const OptionalTensor& bias, bool silu,
                                                  const OptionalTensor& mask,
                                                  const OptionalTensor& segment_starts,
                                                  const OptionalTensor& initial_state) {
  const Casts cast(kDevice, x);
  return calls::causal_conv1d(cast.activation(x), cast.parameter(weight), cast.parameter(bias),
                              silu, mask, segment_starts, cast.parameter(initial_state));
}

template <at::DeviceType kDevice>
Tensor causal_conv1d_update_autocast(Tensor& state, const Tensor& x, const Tensor& weight,
                                     const OptionalTensor& bias, bool silu) {
  const Casts cast(kDevice, x);
  return calls::causal_conv1d_update(state, cast.activation(x), cast.parameter(weight),
                                     cast.parameter(bias), silu);
}

template <at::DeviceType kDevice>
void register_ops(torch::Library& m) {
  m.impl("selective_scan", &selective_scan_autocast<kDevice>);
  m.impl("selective_state_update", &selective_state_update_autocast<kDevice>);
  m.impl("causal_conv1d", &causal_conv1d_autocast<kDevice>);
  m.impl("causal_conv1d_update", &causal_conv1d_update_autocast<kDevice>);
}

}  // namespace

TORCH_LIBRARY_IMPL(dmamba, AutocastCPU, m) { register_ops<at::kCPU>(m); }
TORCH_LIBRARY_IMPL(dmamba, AutocastCUDA, m) { register_ops<at::kCUDA>(m); }

}  // namespace dmamba::ops
