// The Mamba block: parameters, the outer projections, the states.
#include "dmamba/nn/mamba.h"

#include <cmath>

#include "dmamba/common/error.h"
#include "src/nn/linear.h"
#include "src/nn/mamba_inner.h"
#include "src/nn/mixer_support.h"
#include "src/ops/optional.h"

namespace dmamba::nn {
namespace {

using torch::Tensor;

MambaOptions checked(MambaOptions o) {
  const auto at_least_one = [](const char* name, int64_t value) {
    if (value < 1) {
      throw ConfigError(std::string("Mamba: ") + name + " must be at least 1, got " +
                        std::to_string(value));
    }
  };
  at_least_one("d_model", o.d_model);
  at_least_one("d_state", o.d_state);
  at_least_one("d_conv", o.d_conv);
  at_least_one("expand", o.expand);
  if (o.dt_rank == 0) o.dt_rank = (o.d_model + 15) / 16;
  at_least_one("dt_rank", o.dt_rank);
  return o;
}

/// dt such that softplus(bias) = dt, with dt log-uniform in [0.001, 0.1] (mamba_ssm's defaults).
Tensor initial_dt_bias(int64_t d_inner) {
  constexpr double kFloor = 1e-4;
  const Tensor dt = torch::exp(log_step_sizes(d_inner)).clamp_min(kFloor);
  return dt + torch::log(-torch::expm1(-dt));
}

MambaInnerParameters inner_parameters(const MambaImpl& m) {
  return {m.conv1d->weight.squeeze(1),
          ops::or_absent(m.conv1d->bias),
          m.x_proj->weight,
          m.dt_proj->weight,
          m.dt_proj->bias,
          m.A_log,
          m.D};
}

}  // namespace

/// On CUDA where they lie, so that a recorded step finds what the last one left.
void MambaState::replace(Tensor new_conv, Tensor new_ssm) {
  if (conv.is_cuda()) {
    conv.copy_(new_conv);
    ssm.copy_(new_ssm);
  } else {
    conv = std::move(new_conv);
    ssm = std::move(new_ssm);
  }
}

void MambaState::take(const Tensor& which, const MixerState& other) {
  const auto& theirs = dynamic_cast<const MambaState&>(other);
  take_rows(conv, theirs.conv, which);
  take_rows(ssm, theirs.ssm, which);
}

MambaImpl::MambaImpl(const MambaOptions& options) : options_(checked(options)) {
  using torch::nn::LinearOptions;
  const auto& o = options_;
  const int64_t d_inner = o.expand * o.d_model;
  in_proj = register_module("in_proj",
                            torch::nn::Linear(LinearOptions(o.d_model, 2 * d_inner).bias(o.bias)));
  conv1d = register_module(
      "conv1d",
      torch::nn::Conv1d(
          torch::nn::Conv1dOptions(d_inner, d_inner, o.d_conv).groups(d_inner).bias(o.conv_bias)));
  x_proj = register_module(
      "x_proj", torch::nn::Linear(LinearOptions(d_inner, o.dt_rank + 2 * o.d_state).bias(false)));
  dt_proj = register_module("dt_proj", torch::nn::Linear(o.dt_rank, d_inner));
  out_proj = register_module("out_proj",
                             torch::nn::Linear(LinearOptions(d_inner, o.d_model).bias(o.bias)));
  const double dt_bound = 1.0 / std::sqrt(static_cast<double>(o.dt_rank));
  {
    torch::NoGradGuard no_grad;
    dt_proj->weight.uniform_(-dt_bound, dt_bound);
    dt_proj->bias.copy_(initial_dt_bias(d_inner));
  }
  A_log = register_parameter(
      "A_log", torch::arange(1, o.d_state + 1, torch::kFloat).log().repeat({d_inner, 1}));
  D = register_parameter("D", torch::ones({d_inner}));
}

torch::Tensor MambaImpl::forward(const Tensor& x, const ops::TokenFlags& flags) {
  check_tokens("Mamba", x, options_.d_model);
  return linear(*out_proj, inner(linear(*in_proj, x), flags));
}

torch::Tensor MambaImpl::inner(const Tensor& xz, const ops::TokenFlags& flags) const {
  return mamba_inner(xz, inner_parameters(*this), flags);
}

std::unique_ptr<MixerState> MambaImpl::initial_state(int64_t batch) const {
  // Channels contiguous in memory, as the kernels read them.
  const auto zeros = [&](int64_t width) {
    return torch::zeros({batch, width, D.size(0)}, D.options().requires_grad(false))
        .transpose(1, 2);
  };
  return std::make_unique<MambaState>(zeros(options_.d_conv - 1), zeros(options_.d_state));
}

torch::Tensor MambaImpl::step(const Tensor& x, const ops::TokenFlags& flags, MixerState& state) {
  torch::NoGradGuard no_grad;
  check_tokens("Mamba", x, options_.d_model);
  auto& now = dynamic_cast<MambaState&>(state);
  Tensor conv = now.conv, ssm = now.ssm;
  const Tensor y = mamba_inner_step(linear(*in_proj, x), inner_parameters(*this), flags, conv, ssm);
  now.replace(conv, ssm);
  return linear(*out_proj, y);
}

}  // namespace dmamba::nn
