// Convolutions of stride 1 without padding through cuDNN: its deterministic algorithms, and TF32
// exactly where matrix products may use it, whatever the caller's settings are.
#pragma once

#include <ATen/core/Tensor.h>

#include <utility>

namespace dmamba::ops {

/// x (n, in, h, w) and weight (out, in, kh, kw), channels innermost -> (n, out, h - kh + 1, w - kw
/// + 1).
at::Tensor convolve(const at::Tensor& x, const at::Tensor& weight);

/// (dx, dweight); dx is undefined unless wanted.
std::pair<at::Tensor, at::Tensor> convolve_backward(const at::Tensor& dy, const at::Tensor& x,
                                                    const at::Tensor& weight, bool wants_dx);

/// The same choices for torch's own convolutions, forward and backward, as long as one lives in the
/// process.
class ConvolutionSettings {
 public:
  ConvolutionSettings();
  ~ConvolutionSettings();
  ConvolutionSettings(const ConvolutionSettings&) = delete;
  ConvolutionSettings& operator=(const ConvolutionSettings&) = delete;
};

}  // namespace dmamba::ops
