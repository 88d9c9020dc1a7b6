// The diagonal state space layer (S4D; Gu et al., arXiv 2206.11893) as a token mixer, as in
// Decision S4 (David et al., arXiv 2306.05167).
#pragma once

#include "dmamba/nn/token_mixer.h"

namespace dmamba::nn {

///   h_t = exp(dt A) h_{t-1} + x_t;   y_t = 2 Re sum_n C_n (exp(dt A_n) - 1) / A_n h_tn + D x_t
///   out = GLU(output_linear(GELU(y)))
/// for each channel, with d_state / 2 complex states (the other half are their conjugates), where
/// A_n = i pi n - 1/2 at the start (S4D-Lin) and dt is log-uniform in [0.001, 0.1]; names as in the
/// reference code. Whole sequences go through the convolution with the layer's impulse response, by
/// FFT, in float32; sequences that begin anew in their midst one token after the other. A masked
/// token counts as zeros.
class S4dImpl : public TokenMixer {
 public:
  /// Throws ConfigError where d_state is odd.
  explicit S4dImpl(const config::ModelConfig& config);

  torch::Tensor forward(const torch::Tensor& x, const ops::TokenFlags& flags) override;
  std::unique_ptr<MixerState> initial_state(int64_t batch) const override;
  torch::Tensor step(const torch::Tensor& x, const ops::TokenFlags& flags,
                     MixerState& state) override;

 private:
  struct Discrete {
    torch::Tensor log_decay, readout;  // (d_model, d_state / 2) complex: dt A, and C with the input
  };
  Discrete discretize() const;
  torch::Tensor rest(int64_t batch) const;
  torch::Tensor convolve(const torch::Tensor& u) const;
  torch::Tensor walk(const torch::Tensor& u, const ops::TokenFlags& flags,
                     torch::Tensor& state) const;
  torch::Tensor input(const torch::Tensor& x, const ops::TokenFlags& flags) const;
  torch::Tensor output(const torch::Tensor& y, const torch::Tensor& u, const torch::Tensor& x);

  int64_t d_model_, pairs_;
  torch::Tensor C_, log_dt_, log_A_real_, A_imag_, D_;
  torch::nn::Linear output_linear_{nullptr};
};

}  // namespace dmamba::nn
