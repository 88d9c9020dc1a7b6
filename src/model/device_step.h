// A policy's step on CUDA as one graph.
#pragma once

#include <torch/nn.h>

#include <functional>

#include "src/ops/captured_work.h"

namespace dmamba::model {

class DeviceStep {
 public:
  explicit DeviceStep(torch::Device device) : device_(device), stream_(device) {}

  /// Does the work, which may depend on the device's memory and on the model alone, on a stream of
  /// its own, in the order of the current one.
  void run(const torch::nn::Module& model, const std::function<void()>& work);

 private:
  torch::Device device_;
  ops::WorkStream stream_;
  ops::CapturedWork work_{ops::CapturedWork::Mode::kAuto, "a policy's step"};
};

}  // namespace dmamba::model
