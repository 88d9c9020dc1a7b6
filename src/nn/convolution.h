// Local token mixing by convolution, the Decision ConvFormer's (Kim et al., arXiv 2310.03022).
#pragma once

#include "dmamba/nn/elementwise.h"
#include "dmamba/nn/token_mixer.h"

namespace dmamba::nn {

///   y_t = bias_k + sum_j w_kj * x_{t - conv_window + 1 + j},   k the kind of token t; then dropout
/// with a filter a channel for each kind of token. A masked token counts as zeros.
class ConvolutionImpl : public TokenMixer {
 public:
  explicit ConvolutionImpl(const config::ModelConfig& config);

  torch::Tensor forward(const torch::Tensor& x, const ops::TokenFlags& flags) override;
  std::unique_ptr<MixerState> initial_state(int64_t batch) const override;
  torch::Tensor step(const torch::Tensor& x, const ops::TokenFlags& flags,
                     MixerState& state) override;

 private:
  torch::Tensor convolve(const torch::Tensor& x, const ops::TokenFlags& flags,
                         torch::Tensor* state);

  int64_t d_model_, window_;
  std::vector<torch::nn::Conv1d> filters_;  // in the kinds' order; the op does the work
  Dropout dropout_{nullptr};
};

}  // namespace dmamba::nn
