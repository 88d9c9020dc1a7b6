// GELU and dropout.
#include "dmamba/nn/elementwise.h"

#include <ATen/CPUGeneratorImpl.h>

#include "dmamba/common/error.h"
#include "dmamba/ops/ops.h"

namespace dmamba::nn {
namespace {

int64_t draw_key() {
  at::Generator generator = at::detail::getDefaultCPUGenerator();
  const std::lock_guard<std::mutex> lock(generator.mutex());
  return static_cast<int64_t>(at::check_generator<at::CPUGeneratorImpl>(generator)->random64());
}

}  // namespace

torch::Tensor GeluImpl::forward(const torch::Tensor& x) { return ops::gelu(x); }

DropoutImpl::DropoutImpl(double p) : p_(p) {
  if (!(p >= 0.0 && p < 1.0)) {
    throw ConfigError("dropout must be in [0, 1), got " + std::to_string(p));
  }
}

torch::Tensor DropoutImpl::forward(const torch::Tensor& x) {
  return is_training() && p_ > 0.0 ? ops::dropout(x, p_, draw_key()) : x;
}

}  // namespace dmamba::nn
