// What the graph of a step holds on to.
#include "src/model/device_step.h"

#include <ATen/Context.h>
#include <ATen/autocast_mode.h>
#include <torch/torch.h>

namespace dmamba::model {

void DeviceStep::run(const torch::nn::Module& model, const std::function<void()>& work) {
  // The parameters' places, and the caller's choice of arithmetic.
  const auto device = device_.type();
  std::vector<int64_t> identity{at::autocast::is_autocast_enabled(device),
                                static_cast<int64_t>(at::autocast::get_autocast_dtype(device)),
                                static_cast<int64_t>(at::globalContext().float32Precision(
                                    at::Float32Backend::CUDA, at::Float32Op::MATMUL))};
  for (const torch::Tensor& parameter : model.parameters()) {
    identity.push_back(reinterpret_cast<int64_t>(parameter.const_data_ptr()));
  }
  const ops::WorkStream::Scope scope(stream_);
  work_.expect(std::move(identity));
  work_.run(work);
}

}  // namespace dmamba::model
