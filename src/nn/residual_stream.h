// The residual stream that pre-norm layers read and add to.
#pragma once

#include <torch/nn.h>

#include "dmamba/nn/elementwise.h"
#include "src/ops/cuda_only.h"

namespace dmamba::nn {

/// x (batch, L, d_model). An addition is held back until the next norm: on CUDA dropout, addition
/// and LayerNorm are one launch, and their gradients another. On the CPU, and for widths that the
/// kernels don't take, single ops do the same.
class ResidualStream {
 public:
  /// normed: what the first call of norm() is to give, where it is known.
  explicit ResidualStream(torch::Tensor x, torch::Tensor normed = {});

  /// x += branch
  void add(torch::Tensor branch);

  /// x += dropout(branch + bias); bias may be undefined.
  void add(torch::Tensor branch, torch::Tensor bias, const DropoutImpl& dropout);

  /// LayerNorm(x), in the type in which matrix products take it.
  torch::Tensor norm(torch::nn::LayerNormImpl& layer);

  /// x, with all that was added.
  torch::Tensor value();

  /// Whether a bias costs nothing here: products leave theirs to add().
  bool fused() const { return fused_; }

 private:
  void forget_branch();

  bool fused_;
  torch::Tensor x_;
  torch::Tensor normed_;             // undefined: not known
  torch::Tensor branch_, bias_;      // held back; undefined: nothing
  ops::cuda_only::Dropout dropout_;  // of them
};

}  // namespace dmamba::nn
