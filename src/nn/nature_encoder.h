// The paper's encoder of frames.
#pragma once

#include "dmamba/nn/frame_encoder.h"

namespace dmamba::nn {

/// Submodules 0, 2, 4 (convolutions) and 7 (linear), as in the author's checkpoints. On CUDA the
/// convolutions run on folded pixels, see nature_encoder.cpp.
class NatureEncoder final : public FrameEncoder {
 public:
  explicit NatureEncoder(int64_t d_model);
  torch::Tensor forward(const torch::Tensor& stacks) override;
  torch::Tensor forward_strips(const torch::Tensor& strips) override;

 private:
  bool folds(const torch::Tensor& frames) const;

  torch::nn::Conv2d conv1_{nullptr}, conv2_{nullptr}, conv3_{nullptr};
  torch::nn::Linear linear_{nullptr};
};

}  // namespace dmamba::nn
