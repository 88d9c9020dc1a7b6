// A filter for each kind of token, and the choice among them.
#include "src/nn/convolution.h"

#include "dmamba/common/error.h"
#include "dmamba/nn/token_kinds.h"
#include "src/nn/mixer_support.h"

namespace dmamba::nn {
namespace {

using torch::Tensor;

/// The last inputs, (batch, d_model, conv_window - 1).
class ConvolutionState final : public MixerState {
 public:
  explicit ConvolutionState(Tensor inputs) : inputs(std::move(inputs)) {}
  void take(const Tensor& which, const MixerState& other) override {
    take_rows(inputs, dynamic_cast<const ConvolutionState&>(other).inputs, which);
  }
  Tensor inputs;
};

}  // namespace

ConvolutionImpl::ConvolutionImpl(const config::ModelConfig& config)
    : d_model_(config.d_model), window_(config.conv_window) {
  if (window_ < 1) {
    throw ConfigError("model.conv_window must be at least 1, got " + std::to_string(window_));
  }
  const TokenKinds kinds(config);
  for (const char* name : kinds.choose("rtg_conv1d", "obs_conv1d", "act_conv1d")) {
    filters_.push_back(register_module(
        name,
        torch::nn::Conv1d(torch::nn::Conv1dOptions(d_model_, d_model_, window_).groups(d_model_))));
  }
  dropout_ = register_module("dropout", Dropout(config.dropout));
}

/// `state`, where given, goes in and comes out.
Tensor ConvolutionImpl::convolve(const Tensor& x, const ops::TokenFlags& flags, Tensor* state) {
  check_tokens("convolution", x, d_model_);
  const auto count = static_cast<int64_t>(filters_.size());
  const Tensor kind = (torch::arange(x.size(1), x.options().dtype(torch::kLong)) + flags.first_kind)
                          .remainder(count)
                          .unsqueeze(1);
  ops::OptionalTensor before;
  if (state != nullptr) before = *state;
  Tensor y, last;
  for (int64_t k = 0; k < count; ++k) {
    const auto& filter = filters_[static_cast<size_t>(k)];
    const auto [its, inputs] = ops::causal_conv1d(x, filter->weight.squeeze(1), filter->bias,
                                                  /*silu=*/false, flags, before);
    y = k == 0 ? its : torch::where(kind == k, its, y);
    last = inputs;
  }
  if (state != nullptr) state->copy_(last);
  return dropout_(y);
}

Tensor ConvolutionImpl::forward(const Tensor& x, const ops::TokenFlags& flags) {
  return convolve(x, flags, nullptr);
}

std::unique_ptr<MixerState> ConvolutionImpl::initial_state(int64_t batch) const {
  const auto options = filters_[0]->weight.options().requires_grad(false);
  return std::make_unique<ConvolutionState>(
      torch::zeros({batch, window_ - 1, d_model_}, options).transpose(1, 2));
}

Tensor ConvolutionImpl::step(const Tensor& x, const ops::TokenFlags& flags, MixerState& state) {
  torch::NoGradGuard no_grad;
  return convolve(x, flags, &dynamic_cast<ConvolutionState&>(state).inputs);
}

}  // namespace dmamba::nn
