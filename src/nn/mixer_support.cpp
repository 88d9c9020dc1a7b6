// Checks, states, initial values.
#include "src/nn/mixer_support.h"

#include <torch/torch.h>

#include <cmath>

namespace dmamba::nn {

using torch::Tensor;

void check_tokens(const char* mixer, const Tensor& x, int64_t d_model) {
  TORCH_CHECK(x.dim() == 3 && x.size(2) == d_model, mixer,
              ": x must be (batch, L, d_model = ", d_model, "), got ", x.sizes());
}

void take_rows(Tensor& mine, const Tensor& theirs, const Tensor& which) {
  std::vector<int64_t> shape(static_cast<size_t>(mine.dim()), 1);
  shape[0] = -1;
  mine.copy_(torch::where(which.view(shape), theirs, mine));
}

Tensor log_step_sizes(int64_t n) {
  constexpr double kMin = 0.001, kMax = 0.1;
  return torch::rand({n}) * (std::log(kMax) - std::log(kMin)) + std::log(kMin);
}

}  // namespace dmamba::nn
