// A model's mode, for a scope.
#pragma once

#include <torch/nn.h>

namespace dmamba::model {

/// Puts the model into evaluation mode for a scope.
class EvaluationMode {
 public:
  explicit EvaluationMode(torch::nn::Module& model)
      : model_(model), training_(model.is_training()) {
    if (training_) model_.eval();
  }
  ~EvaluationMode() {
    if (training_) model_.train();
  }
  EvaluationMode(const EvaluationMode&) = delete;
  EvaluationMode& operator=(const EvaluationMode&) = delete;

 private:
  torch::nn::Module& model_;
  bool training_;
};

}  // namespace dmamba::model
