// Gradients of a batch that several ranks share, summed while the backward pass goes on.
//
// Rank r has n_r real steps of the batch, and L_r is the mean loss over them. The batch's loss is
//
//   L = sum_r n_r L_r / N,   N = sum_r n_r,
//
// so that rank r's backward pass begins with n_r times a constant, and the sums over the ranks are
// divided by N at the end. n_r and n_r L_r travel with the gradients. Buckets of parameters from
// the model's end to its beginning, as backward passes go (Li et al., PyTorch Distributed, VLDB
// 2020): a bucket's gradients are copied side by side, and their sum begins, when the last of them
// is there.
#pragma once

#include <torch/torch.h>

#include <functional>
#include <memory>
#include <vector>

#include "dmamba/train/ranks.h"
#include "src/ops/graph.h"

namespace dmamba::train {

/// Not thread-safe.
class GradientSum {
 public:
  /// `scale`: the constant. `side`: where weights' gradients are computed, or null.
  GradientSum(const torch::nn::Module& model, std::shared_ptr<Ranks> ranks, double scale,
              ops::SideStream* side);
  ~GradientSum();
  GradientSum(const GradientSum&) = delete;
  GradientSum& operator=(const GradientSum&) = delete;

  /// Looks which parameters are trained. Before the first step and wherever that may have changed;
  /// on CUDA on the stream of the steps.
  void prepare();

  /// The backward pass of this rank's loss. Leaves the batch's gradients in the parameters, and
  /// returns the batch's loss; both are overwritten by the next call. `loss` and `real_steps` are
  /// scalars of the parameters' type. Throws LostRankError; the parameters are as before then.
  torch::Tensor backward(const torch::Tensor& loss, const torch::Tensor& real_steps);

 private:
  struct Parameter {
    torch::Tensor tensor;
    torch::Tensor sum;  // its place in a bucket
    size_t bucket = 0;
  };
  struct Bucket {
    size_t begin = 0, end = 0;  // its parameters
    size_t missing = 0;         // gradients that have not come yet
    torch::Tensor flat;
    Ranks::Pending pending;
  };
  struct Hook;

  void make_buckets();
  void add_hooks();
  void arrived(size_t parameter);
  void launch(Bucket& bucket);
  void beside(const std::function<void()>& work, std::vector<torch::Tensor> inputs);

  std::vector<torch::Tensor> all_;  // the model's parameters, the last first
  std::shared_ptr<Ranks> ranks_;
  double scale_;
  ops::SideStream* side_;
  std::vector<Parameter> trained_;
  std::vector<Bucket> buckets_;
  torch::Tensor loss_and_steps_;  // (2,), the end of the last bucket
  std::vector<std::unique_ptr<Hook>> hooks_;
  size_t next_ = 0;       // bucket to be launched: one order on all ranks
  bool running_ = false;  // whether a backward pass is ours
};

}  // namespace dmamba::train
