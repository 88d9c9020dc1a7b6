// What turns a stack of frames into the vector of a state token. A seam: encoders stand in one
// table, src/nn/frame_encoder.cpp.
#pragma once

#include <torch/nn.h>

#include <memory>
#include <string>
#include <vector>

namespace dmamba::nn {

constexpr int64_t kFrameSide = 84, kFrameStack = 4;

/// Stacks of 4 grey frames of 84 x 84, uint8 -> (n, d_model) in the parameters' dtype (under
/// autocast computed in its type).
class FrameEncoder : public torch::nn::Module {
 public:
  using Module::Module;

  /// stacks (n, 4, 84, 84) uint8, oldest frame first -> (n, d_model).
  virtual torch::Tensor forward(const torch::Tensor& stacks) = 0;

  /// strips (batch, 3 + K, 84, 84) uint8, each frame once: the stack of step t is strips[:, t : t +
  /// 4] -> (batch K, d_model).
  virtual torch::Tensor forward_strips(const torch::Tensor& strips);
};

/// The encoder of this name:
///   nature  convolutions 32 x 8 x 8 / 4, 64 x 4 x 4 / 2, 64 x 3 x 3 / 1 with ReLU, Linear(3136,
///           d_model), Tanh (Mnih et al. 2015, doi 10.1038/nature14236; the author's)
///   impala  three residual stages of 16, 32, 32 channels, Linear, Tanh (Espeholt et al., arXiv
///           1802.01561), each begun by a convolution of stride 2 where the paper pools
/// Throws ConfigError naming the encoders there are.
std::shared_ptr<FrameEncoder> make_frame_encoder(const std::string& name, int64_t d_model);

}  // namespace dmamba::nn
