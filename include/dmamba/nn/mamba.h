// The Mamba block (Gu and Dao, arXiv 2312.00752, section 3.4), parameters named as in mamba_ssm.
#pragma once

#include "dmamba/nn/token_mixer.h"

namespace dmamba::nn {

/// Sizes of a Mamba block; dt_rank 0 means ceil(d_model / 16).
struct MambaOptions {
  int64_t d_model = 128;
  int64_t d_state = 16;
  int64_t d_conv = 4;
  int64_t expand = 2;
  int64_t dt_rank = 0;
  bool conv_bias = true;  ///< of the convolution
  bool bias = false;      ///< of in_proj and out_proj
};

/// Convolution and SSM state of a Mamba block; (batch, d_inner, d_conv - 1) and
/// (batch, d_inner, d_state), parameters' dtype and device.
class MambaState final : public MixerState {
 public:
  MambaState(torch::Tensor conv, torch::Tensor ssm) : conv(std::move(conv)), ssm(std::move(ssm)) {}
  void replace(torch::Tensor new_conv, torch::Tensor new_ssm);
  void take(const torch::Tensor& which, const MixerState& other) override;
  torch::Tensor conv, ssm;
};

///   x, z = split(in_proj(h));  u = SiLU(causal_conv1d(x));  dt, B, C = split(x_proj(u))
///   y = selective_scan(u, dt_proj(dt), A, B, C, D, z),  A = -exp(A_log);  out_proj(y)
class MambaImpl : public TokenMixer {
 public:
  /// Initialised as mamba_ssm does: softplus(dt_proj.bias) log-uniform in [0.001, 0.1],
  /// A_log = log(1..d_state), D = 1. Throws ConfigError for a size below 1.
  explicit MambaImpl(const MambaOptions& options);

  torch::Tensor forward(const torch::Tensor& x, const ops::TokenFlags& flags) override;
  std::unique_ptr<MixerState> initial_state(int64_t batch) const override;
  torch::Tensor step(const torch::Tensor& x, const ops::TokenFlags& flags,
                     MixerState& state) override;

  /// What lies between in_proj and out_proj: (batch, L, 2 d_inner) -> (batch, L, d_inner).
  torch::Tensor inner(const torch::Tensor& xz, const ops::TokenFlags& flags) const;

  const MambaOptions& options() const { return options_; }

  torch::nn::Linear in_proj{nullptr}, x_proj{nullptr}, dt_proj{nullptr}, out_proj{nullptr};
  torch::nn::Conv1d conv1d{nullptr};  // holds the weights; the op does the work
  torch::Tensor A_log, D;             // (d_inner, d_state), (d_inner,)

 private:
  MambaOptions options_;
};
TORCH_MODULE(Mamba);

}  // namespace dmamba::nn
