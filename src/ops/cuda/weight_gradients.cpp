// The gradients of weights on CUDA: tensors to kernels/.
#include <ATen/ATen.h>

#include "kernels/weight_gradients/launch.h"
#include "src/ops/cuda/tensors.h"
#include "src/ops/cuda_only.h"

namespace dmamba::ops::cuda_only {
namespace {

using cuda::Call;

kernels::WeightGradient params_of(const Tensor& dy, const Tensor& x, float* dweight) {
  return {dy.const_data_ptr(),
          x.const_data_ptr(),
          dweight,
          dy.size(0),
          dy.stride(0),
          x.stride(0),
          static_cast<int>(dy.size(1)),
          static_cast<int>(x.size(1))};
}

bool runs_on(at::Device device) {
  const c10::cuda::CUDAGuard guard(device);
  return kernels::weight_gradients_run();
}

}  // namespace

bool weight_gradient_fits(const Tensor& dy, const Tensor& x) {
  // One row that was expanded to all lies nowhere as a matrix: a tensor map does not take it.
  const auto rows_apart = [](const Tensor& t) {
    return t.stride(1) == 1 && t.stride(0) >= t.size(1);
  };
  return dy.is_cuda() && dy.scalar_type() == x.scalar_type() &&
         cuda::products_are_rounded(dy.scalar_type()) && dy.numel() > 0 && x.numel() > 0 &&
         rows_apart(dy) && rows_apart(x) &&
         kernels::weight_gradient_fits(params_of(dy, x, nullptr), storage_of(dy)) &&
         runs_on(dy.device());
}

bool weight_gradient_pays(const Tensor& dy, const Tensor& x) {
  constexpr int64_t kLargestWeight = 1024 * 256;
  return weight_gradient_fits(dy, x) && cuda::is_hopper(dy.device()) &&
         dy.size(1) * x.size(1) <= kLargestWeight;
}

void weight_gradients(const std::vector<WeightGradient>& gradients) {
  Call call("weight_gradients", gradients.at(0).dy);
  std::vector<kernels::WeightGradient> list;
  list.reserve(gradients.size());
  for (const WeightGradient& g : gradients) list.push_back(params_of(g.dy, g.x, g.dweight));
  const auto count = static_cast<int>(list.size());
  const kernels::Storage storage = storage_of(gradients[0].dy);
  const auto launch_hopper = storage == kernels::Storage::kBFloat16
                                 ? kernels::launch_hopper_weight_gradients
                                 : kernels::launch_hopper_tf32_weight_gradients;
  call.check(cuda::is_hopper(gradients[0].dy.device())
                 ? launch_hopper(list.data(), count, call.stream())
                 : kernels::launch_weight_gradients(list.data(), count, storage, call.stream()));
}

}  // namespace dmamba::ops::cuda_only
