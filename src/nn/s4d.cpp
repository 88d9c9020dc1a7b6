// The layer by FFT and by its recurrence.
#include "src/nn/s4d.h"

#include <torch/fft.h>

#include <cmath>
#include <numbers>

#include "dmamba/common/error.h"
#include "dmamba/ops/ops.h"
#include "src/nn/linear.h"
#include "src/nn/mixer_support.h"

namespace dmamba::nn {
namespace {

using torch::Tensor;

/// The states (batch, d_model, pairs) complex.
class S4dState final : public MixerState {
 public:
  explicit S4dState(Tensor h) : h(std::move(h)) {}
  void take(const Tensor& which, const MixerState& other) override {
    take_rows(h, dynamic_cast<const S4dState&>(other).h, which);
  }
  Tensor h;
};

/// (exp(z) - 1) / z for Re z <= 0. Where z is small the difference, and more so the gradient of the
/// quotient, would lose what they are made of: there it is exp(z / 2) sinh(z / 2) / (z / 2), the
/// second factor by its series, 1 + w / 6 + w^2 / 120 + ... with w = z^2 / 4, to float64's
/// rounding.
Tensor mean_decay(const Tensor& z) {
  const Tensor near = z.detach().abs() < 0.5, far = near.logical_not();
  const Tensor small = z.masked_fill(far, 0.0), large = z.masked_fill(near, 1.0);
  const Tensor w = (small * small) * 0.25;
  Tensor series = torch::ones_like(w);
  for (const double divisor : {156.0, 110.0, 72.0, 42.0, 20.0, 6.0}) {
    series = 1.0 + series * w * (1.0 / divisor);
  }
  return torch::where(near, (small * 0.5).exp() * series, (large.exp() - 1.0) / large);
}

}  // namespace

S4dImpl::S4dImpl(const config::ModelConfig& config)
    : d_model_(config.d_model), pairs_(config.d_state / 2) {
  if (config.d_state < 2 || config.d_state % 2 != 0) {
    throw ConfigError("model.d_state must be even for s4d, whose states are conjugate pairs, got " +
                      std::to_string(config.d_state));
  }
  C_ = register_parameter("C", torch::randn({d_model_, pairs_, 2}) * std::sqrt(0.5));
  log_dt_ = register_parameter("log_dt", log_step_sizes(d_model_));
  log_A_real_ = register_parameter("log_A_real", torch::full({d_model_, pairs_}, std::log(0.5)));
  A_imag_ = register_parameter(
      "A_imag", (std::numbers::pi * torch::arange(pairs_, torch::kFloat)).repeat({d_model_, 1}));
  D_ = register_parameter("D", torch::randn({d_model_}));
  output_linear_ = register_module("output_linear", torch::nn::Linear(d_model_, 2 * d_model_));
}

S4dImpl::Discrete S4dImpl::discretize() const {
  const Tensor A = torch::complex(-log_A_real_.exp(), A_imag_);
  const Tensor dt = log_dt_.exp().unsqueeze(1), log_decay = A * dt;
  return {log_decay, torch::view_as_complex(C_) * (dt * mean_decay(log_decay))};
}

/// In the parameters' type.
Tensor S4dImpl::input(const Tensor& x, const ops::TokenFlags& flags) const {
  check_tokens("s4d", x, d_model_);
  const Tensor u = x.to(D_.scalar_type());
  return flags.mask.has_value() ? u.masked_fill(~flags.mask->unsqueeze(2), 0.0) : u;
}

Tensor S4dImpl::output(const Tensor& y, const Tensor& u, const Tensor& x) {
  const Tensor out = ops::gelu(torch::addcmul(y, u, D_));
  return at::glu(linear(*output_linear_, out.to(x.scalar_type())), 2);
}

Tensor S4dImpl::convolve(const Tensor& u) const {
  const int64_t L = u.size(1), n = 2 * L;
  const Discrete d = discretize();
  const Tensor time = torch::arange(L, u.options());
  const Tensor powers = (d.log_decay.unsqueeze(2) * time).exp();  // (d_model, pairs, L)
  const Tensor response = 2.0 * torch::real((d.readout.unsqueeze(2) * powers).sum(1));
  const Tensor spectrum = torch::fft::rfft(response.t(), n, 0);  // (L + 1, d_model)
  return torch::fft::irfft(torch::fft::rfft(u, n, 1) * spectrum, n, 1).narrow(1, 0, L);
}

Tensor S4dImpl::walk(const Tensor& u, const ops::TokenFlags& flags, Tensor& state) const {
  const Discrete d = discretize();
  const Tensor decay = d.log_decay.exp();
  std::vector<Tensor> out;
  for (int64_t t = 0; t < u.size(1); ++t) {
    if (flags.segment_starts.has_value()) {
      state = state.masked_fill(flags.segment_starts->select(1, t).view({-1, 1, 1}), 0.0);
    }
    state = state * decay + u.select(1, t).unsqueeze(2);
    out.push_back(2.0 * torch::real((state * d.readout).sum(2)));
  }
  return torch::stack(out, 1);
}

Tensor S4dImpl::forward(const Tensor& x, const ops::TokenFlags& flags) {
  const Tensor u = input(x, flags);
  if (!flags.segment_starts.has_value()) return output(convolve(u), u, x);
  Tensor h = rest(x.size(0));
  return output(walk(u, flags, h), u, x);
}

/// The states before the first token.
Tensor S4dImpl::rest(int64_t batch) const {
  const auto type = torch::toComplexType(D_.scalar_type());
  return torch::zeros({batch, d_model_, pairs_}, D_.options().requires_grad(false).dtype(type));
}

std::unique_ptr<MixerState> S4dImpl::initial_state(int64_t batch) const {
  return std::make_unique<S4dState>(rest(batch));
}

Tensor S4dImpl::step(const Tensor& x, const ops::TokenFlags& flags, MixerState& state) {
  torch::NoGradGuard no_grad;
  const Tensor u = input(x, flags);
  auto& now = dynamic_cast<S4dState&>(state);
  Tensor h = now.h;
  const Tensor y = walk(u, flags, h);
  now.h.copy_(h);
  return output(y, u, x);
}

}  // namespace dmamba::nn
